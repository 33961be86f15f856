import type { FastifyInstance, FastifyRequest, onRequestHookHandler, RouteOptions } from 'fastify'
import type { Guard } from './authentication.js'
import { openBodyLast } from './reply-body.js'
import { resolveRouteOptions, type ResolvedOptions } from '../options.js'
import { redacting, requestSerializer } from './request-serializer.js'
import { safeLog } from '../util/logger.js'
import { streamRefusal, type RefusalOptions } from '../access/refusal.js'

/** Has each route that says `sse` authenticated in onRequest: after the hooks of its scope, before its body is read. */
export function guardRoutes (fastify: FastifyInstance, options: ResolvedOptions, guard: Guard): void {
  const { reply: name } = options.decorators
  fastify.addHook('onRoute', (route: RouteOptions) => {
    const wanted = resolveRouteOptions(route, name)
    if (wanted === null) return
    const hook: onRequestHookHandler = (request, reply, done) => {
      guard(request, reply, wanted.requireAuthentication).then(() => done(), done)
    }
    route.onRequest = [hook, ...[route.onRequest ?? []].flat()] as NonNullable<RouteOptions['onRequest']>
    openBodyLast(route)
    route.errorHandler = refuseInStream({ ...options, ...wanted }, route.errorHandler)
    route.logSerializers = { ...route.logSerializers, req: requestSerializerOf(fastify, route) }
  })
}

const kPinoSerializers = Symbol.for('pino.serializers')

/** How a route's requests are logged: as the application says, without tickets and tokens. */
function requestSerializerOf (fastify: FastifyInstance, { logSerializers }: RouteOptions): (request: FastifyRequest) => unknown {
  const own = logSerializers?.['req'] ?? (fastify.log as { [kPinoSerializers]?: Record<string, (value: unknown) => unknown> })[kPinoSerializers]?.['req']
  return own === undefined ? requestSerializer : redacting(own)
}

type ErrorHandler = NonNullable<RouteOptions['errorHandler']>

/** Errors before the head that an EventSource should survive are answered here; all others as without this plugin. */
function refuseInStream (options: RefusalOptions, next: ErrorHandler | undefined): ErrorHandler {
  return function (error, request, reply) {
    const refusal = streamRefusal(error, request.raw, options, reply.getHeader('retry-after'))
    if (refusal === null) {
      if (next !== undefined) return next.call(this, error, request, reply)
      // Thrown, it goes to the error handler of the route's scope. What is not an error would be sent as a payload, past all handlers.
      if (error instanceof Error) throw error
      return request.server.errorHandler(error, request, reply)
    }
    reply.code(refusal.statusCode).headers(refusal.headers).send(refusal.body)
    safeLog(request.log).info({ err: error, retryable: refusal.retryable }, 'Stream refused')
  }
}
