import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { InvalidAction, InvalidOption, UnknownConnection } from '../errors.js'
import type { SSEManager } from '../manager.js'
import { safeLog } from '../util/logger.js'
import { quote } from '../util/quote.js'
import type { SourceFactory } from '../streams/source.js'
import { FILES } from './files.js'
import { authorizing, fromPage, sameOrigin } from './guard.js'
import { newestEvents } from './log-events.js'
import { resolveAdminOptions, type AdminOptions } from './options.js'
import { Overviews } from './overview.js'

export type { AdminOptions }

const MAX_BODY_BYTES = 8 * 1024
/** Close reason of the actions. */
const REASON = 'closed-by-admin'

/**
 * A Fastify plugin that serves a page for operators: nodes, connections, topics, runs, slow clients and the newest events of the log. Register it after the
 * plugin of this package. The page is read-only without the option `actions`, and shows no data of events without the option `payloads`.
 * @throws SSE_ERR_INVALID_OPTION
 * @example
 * ```ts
 * import adminPage from 'fastify-sse-manager/admin'
 *
 * await app.register(adminPage, { path: '/admin/streams', authorize: request => isOperator(request) })
 * ```
 */
export default async function adminPage (fastify: FastifyInstance, given: AdminOptions): Promise<void> {
  const options = resolveAdminOptions(given)
  const { path, actions, payloads, decorators } = options
  const manager = (fastify as unknown as Record<string, SSEManager | undefined>)[decorators.instance]
  if (manager === undefined) throw new InvalidOption('decorators.instance', `of the admin page: there is no fastify.${decorators.instance}; register fastify-sse-manager before its admin page`)
  const overviews = new Overviews(manager, { actions, payloads })
  const authorized = authorizing(options)
  const guarded = [authorized, sameOrigin]

  // Bodies are read without the parsers of the application, and only as JSON, which a form of another site cannot send.
  fastify.removeAllContentTypeParsers()
  fastify.addContentTypeParser('application/json', { parseAs: 'string', bodyLimit: MAX_BODY_BYTES }, (_request, text, done) => done(null, text))

  // Links and addresses of files are relative, so that they are right behind a proxy that changes the path.
  fastify.get(path, { onRequest: authorized }, async (request, reply) => {
    const [pathname, ...query] = request.raw.url!.split('?')
    if (pathname!.endsWith('/')) return sendFile(reply, 'index.html')
    return reply.redirect(`./${path.slice(path.lastIndexOf('/') + 1)}/${query.length === 0 ? '' : `?${query.join('?')}`}`)
  })
  fastify.get(`${path}/*`, { onRequest: authorized }, async (request, reply) => sendFile(reply, (request.params as { '*': string })['*'] || 'index.html'))

  fastify.get(`${path}/api/overview`, { onRequest: guarded }, async (_request, reply) => sendJSON(reply, await overviews.read()))
  // The page has its own authorization: the users of the application's streams are others.
  fastify.get(`${path}/api/stream`, { onRequest: guarded, [decorators.reply]: { requireAuthentication: false, refusals: 'status' } } as object, (_request, reply) => {
    const source: SourceFactory = ({ signal }) => overviews.watch(signal)
    return (reply as unknown as Record<string, FastifyReply['sse']>)[decorators.reply]!(source)
  })
  fastify.get(`${path}/api/connections`, { onRequest: guarded }, async (request, reply) => sendJSON(reply, await manager.listConnections(queryOf(request)).catch(error => { throw error instanceof InvalidOption ? Object.assign(error, { statusCode: 400 }) : error })))
  fastify.get(`${path}/api/events`, { onRequest: guarded }, async (_request, reply) => sendJSON(reply, await newestEvents(manager.node, payloads)))

  if (!actions) return
  const acting = { onRequest: [...guarded, fromPage] }
  fastify.post(`${path}/api/close`, acting, async (request, reply) => {
    const { clientId } = bodyOf(request, 'clientId')
    safeLog(request.log).warn({ clientId }, 'The admin page closes a connection')
    if (!await manager.closeConnection(clientId!, REASON)) throw new UnknownConnection(quote(clientId))
    return sendJSON(reply, { closed: 1 })
  })
  fastify.post(`${path}/api/disconnect`, acting, async (request, reply) => {
    const { userId } = bodyOf(request, 'userId')
    safeLog(request.log).warn({ userId }, 'The admin page disconnects a user')
    return sendJSON(reply, { closed: await manager.disconnectUser(userId!, REASON) })
  })
}

/** Sends a file of the page. As text, so that serializers of the application are not asked. */
function sendFile (reply: FastifyReply, name: string): FastifyReply {
  const file = Object.hasOwn(FILES, name) ? FILES[name]! : null
  if (file === null) return reply.code(404).type('text/plain; charset=utf-8').send('Not found')
  return reply.type(file.type).send(file.text)
}

function sendJSON (reply: FastifyReply, value: unknown): FastifyReply {
  return reply.type('application/json; charset=utf-8').send(JSON.stringify(value))
}

/** Parses a search from the URL, without a schema: the application can have its own validator or query parser. */
function queryOf (request: FastifyRequest): object {
  const query: Record<string, unknown> = {}
  for (const [name, text] of new URLSearchParams(request.raw.url!.split('?').slice(1).join('?'))) {
    if (name === 'anonymous') query['userId'] = null
    else query[name] = name === 'lagging' ? text === 'true' : name === 'limit' ? Number(text) : text
  }
  return query
}

/** Returns the body of an action, an object with one text. @throws SSE_ERR_INVALID_ACTION */
function bodyOf (request: FastifyRequest, name: string): Record<string, string> {
  let body: unknown = null
  try {
    body = JSON.parse(request.body as string)
  } catch {}
  const value: unknown = typeof body === 'object' && body !== null ? (body as Record<string, unknown>)[name] : undefined
  if (typeof value !== 'string' || value === '') throw new InvalidAction(`must be an object with the text "${name}"`)
  return { [name]: value }
}
