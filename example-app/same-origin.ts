import { isIP } from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { CrossSite, UnknownHost } from './errors.js'

const SAFE_METHODS = ['GET', 'HEAD', 'OPTIONS']

/** The host names that the environment adds to the loopback ones: `HOST`, and the list `ALLOWED_HOSTS`. */
export function allowedHosts ({ HOST = '', ALLOWED_HOSTS = '' }: NodeJS.ProcessEnv): string[] {
  return [HOST, ...ALLOWED_HOSTS.split(',')].map(host => host.trim().toLowerCase()).filter(host => host !== '')
}

/**
 * Refuses what a foreign page can make a browser send. A demo without passwords is protected by its loopback address only,
 * and every page in a browser on this machine can reach that address:
 * - under a name of its own that it has pointed at 127.0.0.1 (DNS rebinding); the browser then takes both for one origin, and only `Host` tells them apart;
 * - by a form or a simple request, which needs no permission and carries cookies of the same site, as pages on other ports are.
 */
export function allowSameOrigin (app: FastifyInstance, hosts: readonly string[]): void {
  app.addHook('onRequest', async request => {
    if (!isOwnHost(request, hosts)) throw new UnknownHost(request.hostname)
    // The plugin checks the streams, which are GET requests.
    if (!SAFE_METHODS.includes(request.method) && !isSameOrigin(request)) throw new CrossSite()
  })
}

function isOwnHost ({ headers: { host = '' }, socket }: FastifyRequest, hosts: readonly string[]): boolean {
  const name = host.toLowerCase().replace(/:\d*$/, '')
  if (name === 'localhost' || name === '[::1]' || hosts.includes(name)) return true
  const address = name.replace(/^\[(.*)\]$/, '$1')
  // An address cannot be rebound. The other end of the socket is the one that was asked for, also where the app listens on all.
  return isIP(address) !== 0 && (address.startsWith('127.') || address === socket.localAddress?.replace(/^::ffff:/, ''))
}

/** By what the browser says of the page; an older one, or one on plain HTTP, says its origin only. What says neither is no browser. */
function isSameOrigin ({ headers: { 'sec-fetch-site': site, origin, host } }: FastifyRequest): boolean {
  if (site !== undefined) return site === 'same-origin' || site === 'none'
  return origin === undefined || (URL.canParse(origin) && /^https?:$/.test(new URL(origin).protocol) && new URL(origin).host === host?.toLowerCase())
}
