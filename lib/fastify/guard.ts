import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { currentUser, findUser, isRefusal, type SSEUser } from '../access/authentication.js'
import type { Admission } from '../access/admission.js'
import type { EnterOptions } from '../access/connect-options.js'
import type { Arrival } from '../access/arrival.js'
import { Ticket } from '../access/tickets.js'
import { AuthenticationFailed, Unauthenticated } from '../errors.js'
import type { SSEConnection } from '../connections/connection.js'
import { isThenable } from '../util/promise.js'
import { safeLog } from '../util/logger.js'
import type { ResolvedOptions } from '../options.js'
import { composeStrategies, type Strategies } from './strategies.js'

/** The authentication state of one request. */
interface Identification {
  readonly arrival: Arrival
  readonly requireAuthentication: boolean
  /** The result of the authentication; null until it starts. */
  found: Promise<SSEUser | null> | null
  /** Values of the request's properties when `authHandler` found no user; null if it found a user, or was not called. */
  before: readonly unknown[] | null
}

// `Symbol.for`: the package can be loaded twice, by `import` and by `require`.
const kUser = Symbol.for('fastify-sse-manager.user')
/**
 * The user that a guard found, as opposed to a user set by a hook. A second manager does not adopt it, and authenticates the request
 * again.
 */
const kFound = Symbol.for('fastify-sse-manager.found')
type Known = FastifyRequest & { [kUser]: SSEUser | null, [kFound]: SSEUser | null }

/**
 * Authenticates the requests of one manager. Each request is authenticated once: in `onRequest` of a guarded route, otherwise in
 * `reply.sse()`.
 */
export class Guard {
  readonly #options: ResolvedOptions
  readonly #admission: Admission
  readonly #strategies: Strategies | null
  /** Property of a request that holds its identification. A WeakMap costs each stream more than the rest of its authentication. */
  readonly #identification = Symbol('fastify-sse-manager.identification')

  private constructor (fastify: FastifyInstance, options: ResolvedOptions, admission: Admission, strategies: Strategies | null) {
    this.#options = options
    this.#admission = admission
    this.#strategies = strategies
    for (const name of [kUser, kFound, this.#identification]) if (!fastify.hasRequestDecorator(name)) fastify.decorateRequest(name, null)
    if (fastify.hasRequestDecorator('sseUser')) return
    // An accessor: requests of scopes that were created before the plugin was loaded do not have a plain property.
    fastify.decorateRequest('sseUser', {
      getter () { return (this as Known)[kUser] ?? null },
      setter (user) { (this as Known)[kUser] = user }
    })
  }

  /** Creates the guard of a manager, with the composed `authStrategies`. */
  static async create (fastify: FastifyInstance, options: ResolvedOptions, admission: Admission): Promise<Guard> {
    return new Guard(fastify, options, admission, await composeStrategies(fastify, options))
  }

  /** Returns the state of a request. The first call for a request registers its arrival, see `Admission.arrive`. */
  arrive (request: FastifyRequest, reply: FastifyReply, requireAuthentication = this.#options.requireAuthentication): Identification {
    const known = request as unknown as Record<symbol, Identification | null | undefined>
    return (known[this.#identification] ??= { arrival: this.#admission.arrive(request.raw, reply.raw, request, request.ip), requireAuthentication, found: null, before: null })
  }

  /**
   * Authenticates a request once, and resolves with its user; null for an unauthenticated client.
   * @throws SSE_ERR_UNAUTHENTICATED when a user is required, SSE_ERR_INVALID_TICKET, SSE_ERR_AUTHENTICATION_FAILED
   */
  decide (request: FastifyRequest, reply: FastifyReply, requireAuthentication?: boolean): Promise<SSEUser | null> {
    const identification = this.arrive(request, reply, requireAuthentication)
    return (identification.found ??= this.#admit(identification, request as Known, reply))
  }

  /** Creates the connection of a request. The user is that of `onRequest`, unless a later hook has set another user. */
  async connect (request: FastifyRequest, reply: FastifyReply, options: EnterOptions, managed: boolean): Promise<SSEConnection> {
    const identification = this.arrive(request, reply)
    try {
      const isDecided = identification.found !== null
      if (!isDecided) identification.arrival.assertAcceptable()
      const found = await this.decide(request, reply)
      const user = isDecided && mayHaveChanged(identification, request as Known, found) ? await this.#review(identification, request as Known, found) : found
      return await this.#admission.enter(identification.arrival, user, options, managed)
    } catch (error) {
      this.refused(reply, error)
      throw error
    }
  }

  /** Counts a request that is refused with this error. */
  refused (reply: FastifyReply, error: unknown): void {
    this.#admission.refused(reply.raw, error)
  }

  async #admit (identification: Identification, request: Known, reply: FastifyReply): Promise<SSEUser | null> {
    const { reservation } = identification.arrival
    try {
      const user = await this.#identify(identification, request, reply)
      reservation?.assign(user?.userId ?? null)
      return user
    } catch (error) {
      this.refused(reply, error)
      reservation?.leave()
      throw error
    }
  }

  async #identify (identification: Identification, request: Known, reply: FastifyReply): Promise<SSEUser | null> {
    const { requireAuthentication } = identification
    if (request.sseUser !== null && request.sseUser === request[kFound]) request.sseUser = request[kFound] = null
    // A ticket alone identifies the user: cookies and other credentials are not read.
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
        // @fastify/auth has set the status 401, and a strategy may have set a user. Authentication is optional here, so both are
        // restored.
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
   * Determines the user again after the hooks that follow `onRequest`. A changed `request.sseUser` is the new user, except for a request
   * with a ticket. If `authHandler` found no user and a hook has changed the request, such as `request.user`, `authHandler` is called
   * again.
   * @throws SSE_ERR_UNAUTHENTICATED, SSE_ERR_AUTHENTICATION_FAILED
   */
  async #review (identification: Identification, request: Known, found: SSEUser | null): Promise<SSEUser | null> {
    const isOurs = request.sseUser === (request[kFound] ?? null)
    let user = found
    if (!isOurs && !(found instanceof Ticket)) user = checked(request.sseUser, this.#options)
    else if (identification.before !== null && isChanged(request, identification.before)) user = await findUser(this.#options, request)
    identification.before = null
    // A handler whose `reply.sse()` was rejected can call it again.
    identification.found = Promise.resolve(user)
    if (found !== null && user?.userId !== found.userId) safeLog(request.log).warn({ userId: user?.userId ?? null, authenticatedUserId: found.userId }, 'request.sseUser was changed after the request was authenticated; the stream is that of the new user. To authenticate by yourself, do so in onRequest')
    if (isOurs) request[kFound] = user
    request.sseUser = user
    if (user === null && identification.requireAuthentication) throw new Unauthenticated()
    return user
  }
}

/**
 * Validates a user that the application has set. Returns null for no user, and for a user whose rights have expired.
 * @throws SSE_ERR_AUTHENTICATION_FAILED
 */
function checked (user: unknown, options: ResolvedOptions): SSEUser | null {
  try {
    return currentUser(user, options)
  } catch (cause) {
    throw new AuthenticationFailed('', { cause })
  }
}

/** Returns whether a hook after `onRequest`, or another manager, may have changed the user. */
function mayHaveChanged ({ before }: Identification, { sseUser, [kFound]: ours }: Known, found: SSEUser | null): boolean {
  return before !== null || sseUser !== found || sseUser !== (ours ?? null)
}

/** Returns whether a hook has added or changed a property of the request. Properties with symbol keys belong to Fastify. */
function isChanged (request: object, before: readonly unknown[]): boolean {
  const values = Object.values(request)
  return values.length !== before.length || values.some((value, index) => value !== before[index])
}
