import { isDeepStrictEqual } from 'node:util'
import type { FastifyInstance, FastifyReply, FastifyRequest, RouteOptions } from 'fastify'
import type { Guard } from './guard.js'
import { openBodyLast } from './hijacking-body.js'
import { UnguardedRoute } from '../errors.js'
import { resolveRouteOptions, type ResolvedOptions, type RouteOptions as RouteOptionValues } from '../options.js'
import { redacting, requestSerializer } from './log-redaction.js'
import { overlay, pinHooks } from './pin-hooks.js'
import { reasonsOf, safeLog } from '../util/logger.js'
import { streamRefusal, type Refusal } from '../access/refusal.js'

/** The guard of one manager on a route with its option. */
export interface RouteGuard {
  /** Name of the option. */
  readonly option: string
  /** The resolved values of the option. */
  readonly wanted: RouteOptionValues
  /** See `Guard.arrive`. */
  arrive (request: FastifyRequest, reply: FastifyReply): unknown
  /** See `Guard.decide`. */
  decide (request: FastifyRequest, reply: FastifyReply): Promise<unknown>
  /** Returns the response to a refused stream request; null if Fastify's error handler answers it. */
  refusal (error: unknown, request: FastifyRequest, reply: FastifyReply): Refusal | null
}

/** A declared route. Guards are added later if the plugin is loaded after the route was declared. */
export interface DeclaredRoute {
  readonly options: RouteOptions
  readonly scope: FastifyInstance
  readonly guards: RouteGuard[]
  /** Whether later guards take effect: `prepareRoute` has set the options that Fastify reads when a route is declared. */
  readonly isPrepared: boolean
}

/** Reads the option of one manager on declared routes, and guards these routes. */
export interface RouteReader {
  /** Name of the option. */
  readonly option: string
  /**
   * Guards the route if it has the option.
   * @throws SSE_ERR_UNGUARDED_ROUTE, SSE_ERR_INVALID_OPTION
   */
  read (route: DeclaredRoute): void
  /**
   * Returns whether the route is guarded as its current option says, or is in another scope. An onRoute hook may have changed the option
   * after `read`.
   */
  heeds (route: DeclaredRoute): boolean
}

/** Returns the name of a route for errors, such as `POST /publish`. */
export function nameOf ({ method, url }: RouteOptions): string {
  return `${[method].flat().join(',')} ${url}`
}

/** Returns the value of a route option; undefined if it is absent or `false`. */
export function wantedOf (options: RouteOptions, name: string): unknown {
  const value = (options as unknown as Record<string, unknown>)[name]
  return value === false ? undefined : value
}

/**
 * Creates the reader of a manager. It guards routes that have the option `decorators.reply`. Guards run after the hooks of the scope, and
 * before the body is read.
 */
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
      const { requireAuthentication: beside } = route.options as { requireAuthentication?: unknown }
      // A plugin can have an option of this name, so the boot goes on.
      if (beside === true && requireAuthentication !== true && route.options.method !== 'HEAD') safeLog(route.scope.log).warn({ route: nameOf(route.options) }, `The route option requireAuthentication is not read beside "${option}": write ${option}: { requireAuthentication: true }`)
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

/**
 * Adds a guard to `onRequest` of a route. A first hook registers the request. A last hook authenticates it, after the route's own hooks,
 * which can set the user.
 */
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

/**
 * Sets the options that Fastify reads when a route is declared. Until a guard is added, the route responds and logs as without this
 * package.
 */
export function prepareRoute ({ options, scope, guards }: DeclaredRoute): void {
  overlay(options, 'errorHandler', next => refuseInStream(guards, next))
  overlay(options, 'logSerializers', given => {
    const own = given?.['req'] ?? (scope.log as { [kPinoSerializers]?: Record<string, (value: unknown) => unknown> })[kPinoSerializers]?.['req']
    const guarded = own === undefined ? requestSerializer : redacting(own)
    const req = (request: FastifyRequest): unknown => guards.length > 0 ? guarded(request) : own === undefined ? request : own(request)
    // The prototype of the given serializers has those of the scope.
    return Object.assign(Object.create(given === undefined ? null : Object.getPrototypeOf(given)), given, { req })
  })
}

const kPinoSerializers = Symbol.for('pino.serializers')

type ErrorHandler = NonNullable<RouteOptions['errorHandler']>

/**
 * Returns an error handler that answers refused stream requests as the option `refusals` says. All other errors are handled as without
 * this package.
 */
function refuseInStream (guards: readonly RouteGuard[], next: ErrorHandler | undefined): ErrorHandler {
  return function (error, request, reply) {
    for (const guard of guards) {
      const refusal = guard.refusal(error, request, reply)
      if (refusal === null) continue
      reply.code(refusal.statusCode).headers(refusal.headers).send(refusal.body)
      // A full node is not a failure; an authentication that could not be completed is. Its cause is logged, but not sent.
      const isFailure = error.code === 'SSE_ERR_AUTHENTICATION_FAILED'
      safeLog(request.log)[isFailure ? 'error' : 'info']({ err: error, retryable: refusal.retryable }, `Stream refused: ${isFailure ? reasonsOf(error) : error.message}`)
      return
    }
    if (next !== undefined) return next.call(this, error, request, reply)
    // A thrown error reaches the error handler of the route's scope. Any other thrown value would be sent as a payload, without an error
    // handler.
    if (error instanceof Error) throw error
    return request.server.errorHandler(error, request, reply)
  }
}
