import type { FastifyInstance, FastifyRequest, onRequestHookHandler, RouteOptions } from 'fastify'
import type { Guard } from './authentication.js'
import { openBodyLast } from './reply-body.js'
import { InvalidOption } from '../errors.js'
import type { ResolvedOptions } from '../options.js'
import { redacting, requestSerializer } from './request-serializer.js'
import { streamRefusal } from '../access/refusal.js'
import type { SSERouteOptions } from '../../types/index.js'

/** Has each route that says `sse` authenticated in onRequest: after the hooks of its scope, before its body is read. */
export function guardRoutes (fastify: FastifyInstance, options: ResolvedOptions, guard: Guard): void {
  const { reply: name } = options.decorators
  fastify.addHook('onRoute', (route: RouteOptions) => {
    const wanted = (route as unknown as Record<string, unknown>)[name] as boolean | SSERouteOptions | undefined
    if (wanted === undefined || wanted === false) return
    assertRouteOption(wanted, name, route.url)
    const required = wanted === true ? undefined : wanted.requireAuthentication
    const hook: onRequestHookHandler = (request, reply, done) => {
      guard(request, reply, required).then(() => done(), done)
    }
    route.onRequest = [hook, ...[route.onRequest ?? []].flat()] as NonNullable<RouteOptions['onRequest']>
    openBodyLast(route)
    route.errorHandler = refuseInStream(options, route.errorHandler)
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
function refuseInStream (options: ResolvedOptions, next: ErrorHandler | undefined): ErrorHandler {
  return function (error, request, reply) {
    const refusal = streamRefusal(error, request.raw, options, reply.getHeader('retry-after'))
    if (refusal === null) {
      // Thrown, it goes to the error handler of the route's scope.
      if (next === undefined) throw error
      return next.call(this, error, request, reply)
    }
    request.log.info({ err: error, retryable: refusal.retryable }, 'Stream refused')
    reply.code(refusal.statusCode).headers(refusal.headers).send(refusal.body)
  }
}

function assertRouteOption (wanted: unknown, name: string, url: string): void {
  if (wanted === true) return
  const keys = typeof wanted === 'object' && wanted !== null ? Object.keys(wanted) : null
  if (keys === null) throw new InvalidOption(name, `of route ${url} must be true, false or an object`)
  for (const key of keys) if (key !== 'requireAuthentication') throw new InvalidOption(`${name}.${key}`, `of route ${url} is not an option: it has requireAuthentication`)
  const { requireAuthentication } = wanted as SSERouteOptions
  if (requireAuthentication !== undefined && typeof requireAuthentication !== 'boolean') throw new InvalidOption(`${name}.requireAuthentication`, `of route ${url} must be a boolean`)
}
