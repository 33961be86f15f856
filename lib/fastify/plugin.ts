import type { Server } from 'node:http'
import fastifyAuth from '@fastify/auth'
import type { FastifyInstance, FastifyReply, FastifyRequest, onRequestHookHandler, RouteOptions } from 'fastify'
import fp from 'fastify-plugin'
import { assertOrigin, currentUser, findUser, isRefusal } from '../access/authentication.js'
import { openBodyLast } from './reply-body.js'
import { AlreadyRegistered, AuthenticationFailed, DecoratorTaken, InvalidOption, SubscriptionForbidden, Unauthenticated } from '../errors.js'
import { isAcceptable } from '../wire/headers.js'
import { SSEManager } from '../manager.js'
import { resolveOptions, type ResolvedOptions, type SSEOptions, type SSEUser } from '../options.js'
import { Preconnects } from '../wire/idle-sockets.js'
import { redacting, requestSerializer } from './request-serializer.js'
import { streamRefusal } from '../access/refusal.js'
import { replySSE, type Guard, type Recognition } from './reply.js'
import { assertChosenSubscription, isPattern, quote } from '../events/topic.js'
import type { SSERouteOptions } from '../../types/index.js'

const kManager = Symbol.for('fastify-sse-manager.manager')
/** Where a request keeps the user that a guard has found, as opposed to the application's hooks: a second manager asks for itself. */
const kFound = Symbol('fastify-sse-manager.found')
type Known = FastifyRequest & { [kFound]: SSEUser | null }

async function ssePlugin (fastify: FastifyInstance, given: SSEOptions): Promise<void> {
  const options = resolveOptions(given)
  const names = options.decorators
  assertFree(fastify, names)

  const manager = new SSEManager(given, fastify.log.child({ plugin: 'fastify-sse-manager' }))
  const guard = await createGuard(fastify, options, manager)

  Object.defineProperty(manager, kManager, { value: true })
  fastify.decorate(names.instance, manager)
  if (!fastify.hasRequestDecorator('sseUser')) fastify.decorateRequest('sseUser', null)
  fastify.decorateReply(names.reply, function (this: FastifyReply, first?: unknown, second?: unknown) {
    return replySSE(manager, guard, this.request, this, first, second)
  })

  // A route that says `sse` is authenticated in onRequest: after the hooks of its scope, before its body is read.
  fastify.addHook('onRoute', (route: RouteOptions) => {
    const wanted = (route as unknown as Record<string, unknown>)[names.reply] as boolean | SSERouteOptions | undefined
    if (wanted === undefined || wanted === false) return
    assertRouteOption(wanted, names.reply, route.url)
    const required = wanted === true ? undefined : wanted.requireAuthentication
    const hook: onRequestHookHandler = (request, reply, done) => {
      guard(request, reply, required).then(() => done(), done)
    }
    route.onRequest = [hook, ...[route.onRequest ?? []].flat()] as NonNullable<RouteOptions['onRequest']>
    openBodyLast(route)
    route.errorHandler = refuseInStream(options, route.errorHandler)
    route.logSerializers = { ...route.logSerializers, req: requestSerializerOf(fastify, route) }
  })

  // Streams end before the server stops listening to them: `onClose` would wait for them for ever (FACTS 2.4). Not
  // awaited: the sooner the port is closed, the sooner a returning client finds the next server instead of a 503.
  const preconnects = new Preconnects(fastify.server as Server)
  fastify.addHook('preClose', async () => {
    manager.drain()
    preconnects.close(options.drainMs)
  })
  fastify.addHook('onClose', () => manager.close())

  await manager.open()
  if (options.path !== undefined) registerEndpoint(fastify, options.path, options)
}

/** The ready endpoint: one stream for whoever may connect, with the topics the client asks for, if that is allowed. */
function registerEndpoint (fastify: FastifyInstance, path: string, { clientSubscriptions, decorators }: ResolvedOptions): void {
  fastify.route({
    method: 'GET',
    url: path,
    [decorators.reply]: true,
    handler: async (request, reply) => {
      // Not by a schema: the application may have a validator, or a query parser, of its own.
      const [, ...query] = request.raw.url!.split('?')
      const subscriptions = new URLSearchParams(query.join('?')).getAll('subscription')
      for (const subscription of subscriptions) {
        if (clientSubscriptions === false || (clientSubscriptions === true && isPattern(subscription))) throw new SubscriptionForbidden(quote(subscription))
        assertChosenSubscription(subscription)
      }
      await (reply as unknown as Record<string, FastifyReply['sse']>)[decorators.reply]!({ subscriptions })
    }
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

/** Who a request is from: origin, strategies, handler; asked once for each request, by the hook or by `reply.sse()`. */
async function createGuard (fastify: FastifyInstance, options: ResolvedOptions, manager: SSEManager): Promise<Guard> {
  const strategies = await composeStrategies(fastify, options)
  // Where a request keeps its answer. Not weak maps: those cost each stream more than all the rest of its authentication.
  const kAnswer = Symbol('fastify-sse-manager.answer')
  type Asked = FastifyRequest & { [kAnswer]: Promise<Recognition> | null }
  if (!fastify.hasRequestDecorator(kFound)) fastify.decorateRequest(kFound, null)
  fastify.decorateRequest(kAnswer, null)

  const identify = async (request: FastifyRequest, reply: FastifyReply, requireAuthentication: boolean): Promise<SSEUser | null> => {
    if (request.sseUser !== null && request.sseUser === (request as Known)[kFound]) request.sseUser = null
    // A ticket speaks for the request, and for nobody else: what the cookies say does not matter then.
    const redeemed = manager.redeem(request)
    if (redeemed !== null) {
      const ticket = await redeemed
      request.sseUser = (request as Known)[kFound] = ticket
      return ticket
    }
    const { sseUser: given } = request
    const { statusCode } = reply
    let refused = false
    if (strategies !== null) {
      try {
        await strategies(request, reply)
      } catch (cause) {
        refused = true
        if (!isRefusal(cause)) request.log.info({ err: cause }, 'No authentication strategy passed')
        if (requireAuthentication) throw new Unauthenticated({ cause })
        // One strategy may have passed, and @fastify/auth has already made it a 401: this stream is nobody's, but it is one.
        request.sseUser = given
        reply.code(statusCode)
      }
    }
    if (!refused && request.sseUser === null) request.sseUser = await findUser(options, request)
    try {
      request.sseUser = currentUser(request.sseUser)
    } catch (cause) {
      throw new AuthenticationFailed({ cause })
    }
    if (request.sseUser === null && requireAuthentication) throw new Unauthenticated()
    if (given === null && request.sseUser !== null) (request as Known)[kFound] = request.sseUser
    return request.sseUser
  }
  const admit = async (request: FastifyRequest, reply: FastifyReply, requireAuthentication: boolean): Promise<Recognition> => {
    assertOrigin(options, request)
    // A route may have other answers, too: whoever rules out a stream is not counted.
    const seat = isAcceptable(request.headers.accept) ? manager.seat(reply.raw, request.ip) : null
    const since = manager.moment
    try {
      const user = await identify(request, reply, requireAuthentication)
      seat?.assign(user?.userId ?? null)
      return { user, since }
    } catch (error) {
      seat?.leave()
      throw error
    }
  }
  return (request, reply, required = options.requireAuthentication) => ((request as Asked)[kAnswer] ??= admit(request, reply, required))
}

/** `authStrategies` as one function, composed by @fastify/auth: the application's, or our own in a scope that shows nothing outside. */
async function composeStrategies (fastify: FastifyInstance, { authStrategies, authRelation }: ResolvedOptions): Promise<((request: FastifyRequest, reply: FastifyReply) => Promise<void>) | null> {
  if (authStrategies === undefined) return null
  let run: ReturnType<FastifyInstance['auth']> | undefined
  // Copied with its groups, as @fastify/auth binds the functions in place.
  const compose = (scope: FastifyInstance) => { run = scope.auth(authStrategies.map(strategy => Array.isArray(strategy) ? [...strategy] : strategy), { relation: authRelation }) }
  if (fastify.hasDecorator('auth')) {
    compose(fastify)
  } else {
    await fastify.register(async scope => {
      await scope.register(fastifyAuth)
      compose(scope)
    })
  }
  return (request, reply) => new Promise((resolve, reject) => {
    // A strategy that answers by itself, or never does, ends with the request.
    const onClose = () => reject(new AuthenticationFailed())
    reply.raw.once('close', onClose)
    ;(run as unknown as (request: FastifyRequest, reply: FastifyReply, done: (error?: Error) => void) => void)(request, reply, error => {
      reply.raw.off('close', onClose)
      if (error) reject(error)
      else resolve()
    })
  })
}

function assertFree (fastify: FastifyInstance, names: ResolvedOptions['decorators']): void {
  if (fastify.hasDecorator(names.instance)) {
    const taken = (fastify as unknown as Record<string, unknown>)[names.instance]
    if (typeof taken === 'object' && taken !== null && kManager in taken) throw new AlreadyRegistered(names.instance)
    throw new DecoratorTaken(`fastify.${names.instance}`)
  }
  if (fastify.hasReplyDecorator(names.reply)) throw new DecoratorTaken(`reply.${names.reply}`)
}

function assertRouteOption (wanted: unknown, name: string, url: string): void {
  if (wanted === true) return
  const keys = typeof wanted === 'object' && wanted !== null ? Object.keys(wanted) : null
  if (keys === null) throw new InvalidOption(name, `of route ${url} must be true, false or an object`)
  for (const key of keys) if (key !== 'requireAuthentication') throw new InvalidOption(`${name}.${key}`, `of route ${url} is not an option: it has requireAuthentication`)
  const { requireAuthentication } = wanted as SSERouteOptions
  if (requireAuthentication !== undefined && typeof requireAuthentication !== 'boolean') throw new InvalidOption(`${name}.requireAuthentication`, `of route ${url} must be a boolean`)
}

export default fp(ssePlugin, { name: 'fastify-sse-manager', fastify: '5.x' })
