import { isIP } from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { CrossSite, UnknownHost } from './errors.js'

const SAFE_METHODS = ['GET', 'HEAD', 'OPTIONS']

/** Returns the allowed host names beside those of loopback: `HOST` and the list `ALLOWED_HOSTS`. */
export function allowedHosts ({ HOST = '', ALLOWED_HOSTS = '' }: NodeJS.ProcessEnv): string[] {
  return [HOST, ...ALLOWED_HOSTS.split(',')].map(host => host.trim().toLowerCase()).filter(host => host !== '')
}

/**
 * Rejects requests that a page of another origin makes the browser send. This demo has no passwords: only its loopback address protects
 * it. Every page in a browser on this machine can reach that address:
 * - With a host name that resolves to 127.0.0.1 (DNS rebinding). The browser then treats both as one origin. Only the `Host` header
 *   differs.
 * - With a form or a simple request, which needs no permission. It carries the cookies of the site, which includes pages on other ports.
 */
export function allowSameOrigin (app: FastifyInstance, hosts: readonly string[]): void {
  app.addHook('onRequest', async request => {
    if (!isOwnHost(request, hosts)) throw new UnknownHost(request.hostname)
    // The plugin checks the origin of streams, which are GET requests.
    if (!SAFE_METHODS.includes(request.method) && !isSameOrigin(request)) throw new CrossSite()
  })
}

function isOwnHost ({ headers: { host = '' }, socket }: FastifyRequest, hosts: readonly string[]): boolean {
  const name = host.toLowerCase().replace(/:\d*$/, '')
  if (name === 'localhost' || name === '[::1]' || hosts.includes(name)) return true
  const address = name.replace(/^\[(.*)\]$/, '$1')
  // DNS rebinding does not work with an address. The local address of the socket is the requested one, also if the app listens on all
  // addresses.
  return isIP(address) !== 0 && (address.startsWith('127.') || address === socket.localAddress?.replace(/^::ffff:/, ''))
}

/**
 * Returns whether a request comes from a page of this origin. Older browsers, and pages on plain HTTP, send only `Origin`. A client
 * without both headers is not a browser.
 */
function isSameOrigin ({ headers: { 'sec-fetch-site': site, origin, host } }: FastifyRequest): boolean {
  if (site !== undefined) return site === 'same-origin' || site === 'none'
  return origin === undefined || (URL.canParse(origin) && /^https?:$/.test(new URL(origin).protocol) && new URL(origin).host === host?.toLowerCase())
}
