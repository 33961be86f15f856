import fastifyAuth from '@fastify/auth'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { assertOrigin, currentUser, findUser, isRefusal, type SSEUser } from '../access/authentication.js'
import type { Seat } from '../access/capacity.js'
import { Ticket } from '../access/tickets.js'
import { AuthenticationFailed, Unauthenticated } from '../errors.js'
import { isAcceptable } from '../wire/headers.js'
import { safeLog } from '../util/logger.js'
import type { SSEManager } from '../manager.js'
import type { ResolvedOptions } from '../options.js'

/** The user of a request, as `reply.sse()` needs it. */
export interface Recognition {
  readonly user: SSEUser | null
  /** Read before authentication starts; see `Disconnections`. */
  readonly since: number
  /** Also for a user whose rights have ended since: the stream does not become an anonymous one. */
  readonly requireAuthentication: boolean
}

/** What a guard knows of a request. */
interface Arrival {
  readonly since: number
  readonly seat: Seat | null
  readonly requireAuthentication: boolean
  /** The user at the end of onRequest; null until then. */
  found: Promise<SSEUser | null> | null
  /** What the request carried when `authHandler` found no user; null if it did, or was not asked. */
  before: readonly unknown[] | null
}

type Strategies = (request: FastifyRequest, reply: FastifyReply) => Promise<void>

// `Symbol.for`: the package may be loaded twice, for `import` and for `require`.
const kUser = Symbol.for('fastify-sse-manager.user')
/** The user that a guard has found, as opposed to the application's hooks: a second manager authenticates by itself. */
const kFound = Symbol.for('fastify-sse-manager.found')
type Known = FastifyRequest & { [kUser]: SSEUser | null, [kFound]: SSEUser | null }

/** Authenticates the requests of one manager: each once, in onRequest of its route, or else in `reply.sse()`. */
export class Guard {
  readonly #options: ResolvedOptions
  readonly #manager: SSEManager
  readonly #strategies: Strategies | null
  /** Where a request keeps its arrival. Not a weak map: that costs each stream more than the rest of its authentication. */
  readonly #arrival = Symbol('fastify-sse-manager.arrival')

  private constructor (fastify: FastifyInstance, options: ResolvedOptions, manager: SSEManager, strategies: Strategies | null) {
    this.#options = options
    this.#manager = manager
    this.#strategies = strategies
    for (const name of [kUser, kFound, this.#arrival]) if (!fastify.hasRequestDecorator(name)) fastify.decorateRequest(name, null)
    if (fastify.hasRequestDecorator('sseUser')) return
    // An accessor: a plain property is missing from the requests of scopes that were made before the plugin was loaded.
    fastify.decorateRequest('sseUser', {
      getter () { return (this as Known)[kUser] ?? null },
      setter (user) { (this as Known)[kUser] = user }
    })
  }

  static async create (fastify: FastifyInstance, options: ResolvedOptions, manager: SSEManager): Promise<Guard> {
    return new Guard(fastify, options, manager, await composeStrategies(fastify, options))
  }

  /**
   * Before anything slow is done for the request: checks its origin and counts it, once.
   * @throws SSE_ERR_ORIGIN_FORBIDDEN, SSE_ERR_TOO_MANY_CONNECTIONS, SSE_ERR_TOO_MANY_IP_CONNECTIONS
   */
  arrive (request: FastifyRequest, reply: FastifyReply, requireAuthentication = this.#options.requireAuthentication): Arrival {
    const arrivals = request as unknown as Record<symbol, Arrival | null | undefined>
    const known = arrivals[this.#arrival] ?? null
    if (known !== null) return known
    assertOrigin(this.#options, request)
    // A route may have other answers, too: a client that rules out a stream is not counted.
    const seat = isAcceptable(request.headers.accept) ? this.#manager.seat(reply.raw, request.ip) : null
    return (arrivals[this.#arrival] = { since: this.#manager.moment, seat, requireAuthentication, found: null, before: null })
  }

  /** Finds the user of the request, once. Rejects with SSE_ERR_UNAUTHENTICATED if there is none and one is required. */
  decide (request: FastifyRequest, reply: FastifyReply, requireAuthentication?: boolean): Promise<SSEUser | null> {
    const arrival = this.arrive(request, reply, requireAuthentication)
    return (arrival.found ??= this.#admit(arrival, request as Known, reply))
  }

  /** The user at `reply.sse()`: as decided in onRequest, unless a later hook has found another. */
  async recognise (request: FastifyRequest, reply: FastifyReply): Promise<Recognition> {
    const arrival = this.arrive(request, reply)
    const isDecided = arrival.found !== null
    const found = await this.decide(request, reply)
    const user = isDecided ? await this.#review(arrival, request as Known, found) : found
    return { user, since: arrival.since, requireAuthentication: arrival.requireAuthentication || user !== null }
  }

  async #admit (arrival: Arrival, request: Known, reply: FastifyReply): Promise<SSEUser | null> {
    try {
      const user = await this.#identify(arrival, request, reply)
      arrival.seat?.assign(user?.userId ?? null)
      return user
    } catch (error) {
      arrival.seat?.leave()
      throw error
    }
  }

  async #identify (arrival: Arrival, request: Known, reply: FastifyReply): Promise<SSEUser | null> {
    const { requireAuthentication } = arrival
    if (request.sseUser !== null && request.sseUser === request[kFound]) request.sseUser = request[kFound] = null
    // A ticket speaks for the request, and for nobody else: what the cookies say does not matter then.
    const redeemed = this.#manager.redeem(request)
    if (redeemed !== null) {
      const ticket = await redeemed
      request.sseUser = request[kFound] = ticket
      return ticket
    }
    const { sseUser: given } = request
    const { statusCode } = reply
    let isRefused = false
    if (this.#strategies !== null) {
      try {
        await this.#strategies(request, reply)
      } catch (cause) {
        isRefused = true
        if (!isRefusal(cause)) safeLog(request.log).info({ err: cause }, 'No authentication strategy passed')
        if (requireAuthentication) throw new Unauthenticated({ cause })
        // One strategy may have passed, and @fastify/auth has already made it a 401: the stream is anonymous, but it is one.
        request.sseUser = given
        reply.code(statusCode)
      }
    }
    if (!isRefused && request.sseUser === null) request.sseUser = await findUser(this.#options, request)
    request.sseUser = checked(request.sseUser)
    if (request.sseUser === null && requireAuthentication) throw new Unauthenticated()
    this.#manager.assertRecognised(request, request.sseUser)
    if (given === null) request[kFound] = request.sseUser
    if (request.sseUser === null && !isRefused && this.#options.authHandler !== undefined) arrival.before = Object.values(request)
    return request.sseUser
  }

  /**
   * Hooks after onRequest may have set `request.sseUser`, which counts then; or what `authHandler` reads, such as `request.user`:
   * if it found no user, it is asked again. A ticket still speaks for its request.
   */
  async #review (arrival: Arrival, request: Known, found: SSEUser | null): Promise<SSEUser | null> {
    const isOurs = request.sseUser === (request[kFound] ?? null)
    let user = found
    if (!isOurs && !(found instanceof Ticket)) user = checked(request.sseUser)
    else if (arrival.before !== null && isChanged(request, arrival.before)) user = await findUser(this.#options, request)
    arrival.before = null
    if (found !== null && user?.userId !== found.userId) safeLog(request.log).warn({ userId: user?.userId ?? null, authenticatedUserId: found.userId }, 'request.sseUser was changed after the request was authenticated; the stream is that of the new user. To authenticate by yourself, do so in onRequest')
    if (isOurs) request[kFound] = user
    request.sseUser = user
    return user
  }
}

/** The user that the application has given, if it is one. Throws SSE_ERR_AUTHENTICATION_FAILED. */
function checked (user: unknown): SSEUser | null {
  try {
    return currentUser(user)
  } catch (cause) {
    throw new AuthenticationFailed({ cause })
  }
}

/** Whether a hook has left something on the request. Properties with a Symbol are Fastify's own. */
function isChanged (request: object, before: readonly unknown[]): boolean {
  const values = Object.values(request)
  return values.length !== before.length || values.some((value, index) => value !== before[index])
}

/** `authStrategies` as one function, composed by @fastify/auth: the application's, or our own in a scope that shows nothing outside. */
async function composeStrategies (fastify: FastifyInstance, { authStrategies, authRelation }: ResolvedOptions): Promise<Strategies | null> {
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
