import type { FastifyInstance, FastifyReply } from 'fastify'
import fp from 'fastify-plugin'
import { Guard } from './guard.js'
import { DeclaredRoutes } from './declared-routes.js'
import { registerEndpoint, splitOptions } from './endpoint.js'
import { AlreadyRegistered, DecoratorTaken } from '../errors.js'
import { SSEManager } from '../manager.js'
import { resolveOptions, type ResolvedOptions } from '../options.js'
import type { SSEOptions } from '../../types/options.js'
import { replySSE } from './reply.js'
import { createRouteReader } from './route.js'
import { Servers } from './servers.js'

const kManager = Symbol.for('fastify-sse-manager.manager')

async function ssePlugin (fastify: FastifyInstance, given: SSEOptions): Promise<void> {
  const { own, routing } = splitOptions(given)
  const options = resolveOptions(own)
  const names = options.decorators
  assertFree(fastify, names)
  const routes = DeclaredRoutes.of(fastify, names.reply)

  const manager = new SSEManager(options, fastify.log.child({ plugin: 'fastify-sse-manager' }))
  const guard = await Guard.create(fastify, options, manager.node.admission)

  Object.defineProperty(manager, kManager, { value: true })
  fastify.decorate(names.instance, manager)
  fastify.decorateReply(names.reply, function (this: FastifyReply, first?: unknown, second?: unknown) {
    return replySSE(guard, manager.node.runs, this.request, this, first, second)
  })

  const covers = (scope: FastifyInstance): boolean => (scope as unknown as Record<string, unknown>)[names.instance] === manager
  routes.read(createRouteReader(options, guard, covers))

  // Streams end in `preClose`, because the server waits for open streams before `onClose`. The drain is not awaited: once the port is
  // closed, reconnecting clients reach another server instead of a 503.
  const servers = new Servers(fastify)
  fastify.addHook('preClose', async () => {
    manager.drain()
    servers.closeIdle(options.drainMs)
  })
  fastify.addHook('onClose', () => manager.close())

  await manager.open()
  if (options.path !== undefined) registerEndpoint(fastify, guard, options.path, options, routing)
}

function assertFree (fastify: FastifyInstance, names: ResolvedOptions['decorators']): void {
  if (fastify.hasDecorator(names.instance)) {
    const taken = (fastify as unknown as Record<string, unknown>)[names.instance]
    if (typeof taken === 'object' && taken !== null && kManager in taken) throw new AlreadyRegistered(names.instance)
    throw new DecoratorTaken(`fastify.${names.instance}`)
  }
  if (fastify.hasReplyDecorator(names.reply)) throw new DecoratorTaken(`reply.${names.reply}`)
}

/**
 * The Fastify plugin. It adds `fastify.sse`, `reply.sse()`, `request.sseUser` and the route option `sse`, and opens the event log. For
 * its options, see `SSEOptions`.
 * @throws SSE_ERR_INVALID_OPTION, SSE_ERR_ALREADY_REGISTERED, SSE_ERR_DECORATOR_TAKEN, SSE_ERR_IMPORTED_TOO_LATE,
 * SSE_ERR_UNGUARDED_ROUTE, SSE_ERR_BROKER_UNAVAILABLE
 * @example
 * ```ts
 * await app.register(ssePlugin, { requireAuthentication: true, authHandler: ({ token }) => userOf(token) })
 *
 * app.get('/events', { sse: true }, async (request, reply) => {
 *   await reply.sse({ subscriptions: ['news'] })
 * })
 * ```
 */
export default fp(ssePlugin, { name: 'fastify-sse-manager', fastify: '5.x' })
