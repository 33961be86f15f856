import { isDeepStrictEqual } from 'node:util'
import type { FastifyInstance, FastifyReply, FastifyRequest, RouteOptions } from 'fastify'
import type { Guard } from './guard.js'
import { openBodyLast } from './hijacking-body.js'
import { UnguardedRoute } from '../errors.js'
import { resolveRouteOptions, type ResolvedOptions, type RouteOptions as RouteOptionValues } from '../options.js'
import { redacting, requestSerializer } from './request-serializer.js'
import { overlay, pinHooks } from './pin-hooks.js'
import { reasonsOf, safeLog } from '../util/logger.js'
import { streamRefusal, type Refusal } from '../access/refusal.js'

/** What one manager does for a route whose option asks for it. */
export interface RouteGuard {
  /** The name of the option. */
  readonly option: string
  /** What it said. */
  readonly wanted: RouteOptionValues
  arrive (request: FastifyRequest, reply: FastifyReply): unknown
  decide (request: FastifyRequest, reply: FastifyReply): Promise<unknown>
  refusal (error: unknown, request: FastifyRequest, reply: FastifyReply): Refusal | null
}

/** A route as it was declared. Its guards may come later: the plugin is loaded when its turn comes. */
export interface DeclaredRoute {
  readonly options: RouteOptions
  readonly scope: FastifyInstance
  readonly guards: RouteGuard[]
  /** Whether guards that come later are still heeded by what Fastify reads when a route is declared. */
  readonly isPrepared: boolean
}

/** A manager's side: reads its option of a declared route, and guards the route. */
export interface RouteReader {
  readonly option: string
  read (route: DeclaredRoute): void
  /** Whether the route is guarded as its option says now, or out of reach. A hook that came after `read` may have set the option, or changed it. */
  heeds (route: DeclaredRoute): boolean
}

/** `POST /publish`, for errors. */
export function nameOf ({ method, url }: RouteOptions): string {
  return `${[method].flat().join(',')} ${url}`
}

/** The value of a route's option of this name; undefined also for `false`. */
export function wantedOf (options: RouteOptions, name: string): unknown {
  const value = (options as unknown as Record<string, unknown>)[name]
  return value === false ? undefined : value
}

/** Guards routes that have the option `decorators.reply`: after the hooks of their scope, before their body is read. */
export function createRouteReader (options: ResolvedOptions, guard: Guard, covers: (scope: FastifyInstance) => boolean): RouteReader {
  const { reply: option } = options.decorators
  return {
    option,
    read (route) {
      if (!covers(route.scope)) return
      const wanted = resolveRouteOptions(route.options, option)
      if (wanted === null) return
      if (!route.isPrepared) throw new UnguardedRoute(nameOf(route.options), `the plugin that reads the option "${option}" was loaded after the route was declared; await its registration before you declare routes`)
      const { requireAuthentication } = wanted
      const refusals = { ...options, ...wanted }
      guardRoute(route, {
        option,
        wanted,
        arrive: (request, reply) => guard.arrive(request, reply, requireAuthentication),
        decide: (request, reply) => guard.decide(request, reply, requireAuthentication),
        refusal: (error, request, reply) => streamRefusal(error, request.raw, refusals, reply.getHeader('retry-after'))
      })
    },
    heeds: route => !covers(route.scope) || isDeepStrictEqual(resolveRouteOptions(route.options, option), route.guards.find(guard => guard.option === option)?.wanted ?? null)
  }
}

/** Has the guards of a route run in onRequest: they count the client first of all, and decide after the route's own hooks, which may authenticate it. */
function guardRoute ({ options, guards }: DeclaredRoute, guard: RouteGuard): void {
  if (guards.push(guard) > 1) return
  openBodyLast(options)
  pinHooks(options, 'onRequest', isLast => (request, reply, done) => {
    if (!isLast()) return done()
    decide(guards, request, reply).then(() => done(), done)
  }, (request, reply, done) => {
    for (const guard of guards) guard.arrive(request, reply)
    done()
  })
}

function decide (guards: readonly RouteGuard[], request: FastifyRequest, reply: FastifyReply): Promise<unknown> {
  return guards.length === 1 ? guards[0]!.decide(request, reply) : decideAll(guards, request, reply)
}

async function decideAll (guards: readonly RouteGuard[], request: FastifyRequest, reply: FastifyReply): Promise<void> {
  for (const guard of guards) await guard.decide(request, reply)
}

/** Sets what Fastify reads when a route is declared. Without a guard the route answers and logs as without this package. */
export function prepareRoute ({ options, scope, guards }: DeclaredRoute): void {
  overlay(options, 'errorHandler', next => refuseInStream(guards, next))
  overlay(options, 'logSerializers', given => {
    const own = given?.['req'] ?? (scope.log as { [kPinoSerializers]?: Record<string, (value: unknown) => unknown> })[kPinoSerializers]?.['req']
    const guarded = own === undefined ? requestSerializer : redacting(own)
    const req = (request: FastifyRequest): unknown => guards.length > 0 ? guarded(request) : own === undefined ? request : own(request)
    // Its prototype has those of the scope.
    return Object.assign(Object.create(given === undefined ? null : Object.getPrototypeOf(given)), given, { req })
  })
}

const kPinoSerializers = Symbol.for('pino.serializers')

type ErrorHandler = NonNullable<RouteOptions['errorHandler']>

/** Errors before the head that an EventSource should survive are answered here; all others as without this plugin. */
function refuseInStream (guards: readonly RouteGuard[], next: ErrorHandler | undefined): ErrorHandler {
  return function (error, request, reply) {
    for (const guard of guards) {
      const refusal = guard.refusal(error, request, reply)
      if (refusal === null) continue
      reply.code(refusal.statusCode).headers(refusal.headers).send(refusal.body)
      // A full node is not a failure; an authentication that could not be completed is.
      const level = error.code === 'SSE_ERR_AUTHENTICATION_FAILED' ? 'error' : 'info'
      // The cause of the error is logged, but not sent.
      safeLog(request.log)[level]({ err: error, retryable: refusal.retryable }, `Stream refused: ${reasonsOf(error)}`)
      return
    }
    if (next !== undefined) return next.call(this, error, request, reply)
    // Thrown, it goes to the error handler of the route's scope. What is not an error would be sent as a payload, past all handlers.
    if (error instanceof Error) throw error
    return request.server.errorHandler(error, request, reply)
  }
}
