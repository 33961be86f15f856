import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { currentUser, findUser, isRefusal, type SSEUser } from '../access/authentication.js'
import type { Admission } from '../access/admission.js'
import type { ConnectOptions } from '../access/connect-options.js'
import type { Arrival } from '../access/arrival.js'
import { Ticket } from '../access/tickets.js'
import { AuthenticationFailed, Unauthenticated } from '../errors.js'
import type { SSEConnection } from '../connections/connection.js'
import { isThenable } from '../util/promise.js'
import { safeLog } from '../util/logger.js'
import type { ResolvedOptions } from '../options.js'
import { composeStrategies, type Strategies } from './strategies.js'

/** What a guard knows of a request. */
interface Identification {
  readonly arrival: Arrival
  readonly requireAuthentication: boolean
  /** The user at the end of onRequest; null until then. */
  found: Promise<SSEUser | null> | null
  /** What the request carried when `authHandler` found no user; null if it did, or was not asked. */
  before: readonly unknown[] | null
}

// `Symbol.for`: the package may be loaded twice, for `import` and for `require`.
const kUser = Symbol.for('fastify-sse-manager.user')
/** The user that a guard has found, as opposed to the application's hooks: a second manager authenticates by itself. */
const kFound = Symbol.for('fastify-sse-manager.found')
type Known = FastifyRequest & { [kUser]: SSEUser | null, [kFound]: SSEUser | null }

/** Authenticates the requests of one manager: each once, in onRequest of its route, or else in `reply.sse()`. */
export class Guard {
  readonly #options: ResolvedOptions
  readonly #admission: Admission
  readonly #strategies: Strategies | null
  /** Where a request keeps its identification. Not a weak map: that costs each stream more than the rest of its authentication. */
  readonly #identification = Symbol('fastify-sse-manager.identification')

  private constructor (fastify: FastifyInstance, options: ResolvedOptions, admission: Admission, strategies: Strategies | null) {
    this.#options = options
    this.#admission = admission
    this.#strategies = strategies
    for (const name of [kUser, kFound, this.#identification]) if (!fastify.hasRequestDecorator(name)) fastify.decorateRequest(name, null)
    if (fastify.hasRequestDecorator('sseUser')) return
    // An accessor: a plain property is missing from the requests of scopes that were made before the plugin was loaded.
    fastify.decorateRequest('sseUser', {
      getter () { return (this as Known)[kUser] ?? null },
      setter (user) { (this as Known)[kUser] = user }
    })
  }

  static async create (fastify: FastifyInstance, options: ResolvedOptions, admission: Admission): Promise<Guard> {
    return new Guard(fastify, options, admission, await composeStrategies(fastify, options))
  }

  /** See `Admission.arrive`: once for each request. */
  arrive (request: FastifyRequest, reply: FastifyReply, requireAuthentication = this.#options.requireAuthentication): Identification {
    const known = request as unknown as Record<symbol, Identification | null | undefined>
    return (known[this.#identification] ??= { arrival: this.#admission.arrive(request.raw, reply.raw, request, request.ip), requireAuthentication, found: null, before: null })
  }

  /** Finds the user of the request, once. Rejects with SSE_ERR_UNAUTHENTICATED if there is none and one is required. */
  decide (request: FastifyRequest, reply: FastifyReply, requireAuthentication?: boolean): Promise<SSEUser | null> {
    const identification = this.arrive(request, reply, requireAuthentication)
    return (identification.found ??= this.#admit(identification, request as Known, reply))
  }

  /** Makes the connection of a request, for the user as decided in onRequest, unless a later hook has found another. */
  async connect (request: FastifyRequest, reply: FastifyReply, options: ConnectOptions, managed: boolean): Promise<SSEConnection> {
    const identification = this.arrive(request, reply)
    const isDecided = identification.found !== null
    if (!isDecided) identification.arrival.assertAcceptable()
    const found = await this.decide(request, reply)
    const user = isDecided && mayHaveChanged(identification, request as Known, found) ? await this.#review(identification, request as Known, found) : found
    return await this.#admission.enter(identification.arrival, user, options, managed)
  }

  async #admit (identification: Identification, request: Known, reply: FastifyReply): Promise<SSEUser | null> {
    const { reservation } = identification.arrival
    try {
      const user = await this.#identify(identification, request, reply)
      reservation?.assign(user?.userId ?? null)
      return user
    } catch (error) {
      reservation?.leave()
      throw error
    }
  }

  async #identify (identification: Identification, request: Known, reply: FastifyReply): Promise<SSEUser | null> {
    const { requireAuthentication } = identification
    if (request.sseUser !== null && request.sseUser === request[kFound]) request.sseUser = request[kFound] = null
    // A ticket speaks for the request, and for nobody else: what the cookies say does not matter then.
    const redeemed = this.#admission.redeem(request)
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
    if (!isRefused && request.sseUser === null) {
      const found = findUser(this.#options, request)
      request.sseUser = isThenable(found) ? await found : found
    }
    request.sseUser = checked(request.sseUser, this.#options)
    if (request.sseUser === null && requireAuthentication) throw new Unauthenticated()
    this.#admission.assertRecognised(request, request.sseUser)
    if (given === null) request[kFound] = request.sseUser
    if (request.sseUser === null && !isRefused && this.#options.authHandler !== undefined) identification.before = Object.values(request)
    return request.sseUser
  }

  /**
   * Hooks after onRequest may have set `request.sseUser`, which counts then; or what `authHandler` reads, such as `request.user`:
   * if it found no user, it is asked again. A ticket still speaks for its request.
   */
  async #review (identification: Identification, request: Known, found: SSEUser | null): Promise<SSEUser | null> {
    const isOurs = request.sseUser === (request[kFound] ?? null)
    let user = found
    if (!isOurs && !(found instanceof Ticket)) user = checked(request.sseUser, this.#options)
    else if (identification.before !== null && isChanged(request, identification.before)) user = await findUser(this.#options, request)
    identification.before = null
    if (found !== null && user?.userId !== found.userId) safeLog(request.log).warn({ userId: user?.userId ?? null, authenticatedUserId: found.userId }, 'request.sseUser was changed after the request was authenticated; the stream is that of the new user. To authenticate by yourself, do so in onRequest')
    if (isOurs) request[kFound] = user
    request.sseUser = user
    if (user === null && identification.requireAuthentication) throw new Unauthenticated()
    return user
  }
}

/** The user that the application has given, if it is one. Throws SSE_ERR_AUTHENTICATION_FAILED. */
function checked (user: unknown, options: ResolvedOptions): SSEUser | null {
  try {
    return currentUser(user, options)
  } catch (cause) {
    throw new AuthenticationFailed({ cause })
  }
}

/** Whether a hook after onRequest, or another manager, may have found another user. */
function mayHaveChanged ({ before }: Identification, { sseUser, [kFound]: ours }: Known, found: SSEUser | null): boolean {
  return before !== null || sseUser !== found || sseUser !== (ours ?? null)
}

/** Whether a hook has left something on the request. Properties with a Symbol are Fastify's own. */
function isChanged (request: object, before: readonly unknown[]): boolean {
  const values = Object.values(request)
  return values.length !== before.length || values.some((value, index) => value !== before[index])
}
