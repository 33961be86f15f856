import type { Claims } from '../events/event-input.js'
import { AuthenticationFailed, SubscriptionForbidden, TooManySubscriptions, UnknownConnection } from '../errors.js'
import type { Log } from '../util/logger.js'
import { inNoContext } from '../util/async-context.js'
import { quote } from '../util/quote.js'
import type { AnyRequest } from '../wire/http.js'
import type { Receiver } from './audience.js'
import type { Registry } from './registry.js'

/** The argument of `authorizeSubscription`. */
export interface SubscriptionQuestion {
  /** The request of a new connection; null for a subscription that is added or checked again later. */
  readonly request: AnyRequest | null
  /** The authenticated user id; null for an anonymous connection. */
  readonly userId: string | null
  /** The claims that `authHandler` returned with the user. */
  readonly claims: Claims | undefined
  /** The topic or pattern. */
  readonly subscriptionId: string
}

/**
 * The option `authorizeSubscription`: returns `true`, or a promise of it, if the user can hold the subscription. Any other result
 * rejects the subscription with SSE_ERR_SUBSCRIPTION_FORBIDDEN. An exception rejects it with SSE_ERR_AUTHENTICATION_FAILED.
 */
export type AuthorizeSubscription = (question: SubscriptionQuestion) => boolean | Promise<boolean>

/** A pending authorization, of a new connection or an added subscription. */
interface Pending {
  readonly userId: string | null
  /** Whether the rights of the user have changed since `authorizeSubscription` was called. */
  stale: boolean
}

/** The client that requests subscriptions. */
export interface Applicant {
  /** The request of a new connection; null for an open connection. */
  readonly request: AnyRequest | null
  /** The authenticated user id; null for an anonymous connection. */
  readonly userId: string | null
  /** The claims that `authHandler` returned with the user. */
  readonly claims: Claims | undefined
}

/** The options that restrict subscriptions. */
export interface SubscriptionOptions {
  /** See `SSEOptions`. */
  readonly authorizeSubscription?: AuthorizeSubscription | undefined
  /** See `SSEOptions`. */
  readonly maxSubscriptionsPerConnection: number
}

/** A connection whose subscriptions can change. */
export interface Holder extends Receiver {
  /**
   * Checks queued events again after rights have changed. If the connection is no longer a receiver of an event that is being written,
   * the stream is destroyed.
   */
  reconsider (): void
  /** Checks queued events again after a subscription was removed. */
  sift (): void
  /** Delays events that are published from now on, until `endHold()`. */
  hold (): void
  /** Ends `hold()`. */
  endHold (): void
  /** Handles a subscription that was added to an open connection. */
  added (subscription: string): void
  /** Sends the control event `sse:unsubscribed`. */
  tellUnsubscribed (subscriptionId: string, reason: string): void
}

/**
 * Returns a result for a connection, and rejects null, which means that the connection does not exist.
 * @throws SSE_ERR_UNKNOWN_CONNECTION
 */
export function known<R> (clientId: string, result: R | null): R {
  if (result === null) throw new UnknownConnection(quote(clientId))
  return result
}

/** Grants, checks and revokes the subscriptions of the connections of this node. @internal */
export class Authorization<H extends Holder> {
  readonly #options: SubscriptionOptions
  readonly #registry: Registry<H>
  readonly #log: Log
  readonly #pending = new Set<Pending>()

  constructor (options: SubscriptionOptions, registry: Registry<H>, log: Log) {
    this.#options = options
    this.#registry = registry
    this.#log = log
  }

  /**
   * Authorizes subscriptions and then calls `grant`. If rights of the user change meanwhile, all subscriptions are authorized again.
   * `grant` is called synchronously after the last check, so that no revocation can come in between.
   * @throws SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_AUTHENTICATION_FAILED
   */
  grant<T> (applicant: Applicant, subscriptions: Iterable<string>, grant: () => T): T | Promise<T> {
    return this.#options.authorizeSubscription === undefined ? grant() : this.#ask(applicant, subscriptions, grant)
  }

  /**
   * Adds a subscription to a connection of this node. Resolves with null if there is no such connection.
   * @throws SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_AUTHENTICATION_FAILED, SSE_ERR_TOO_MANY_SUBSCRIPTIONS
   */
  async add (clientId: string, subscription: string): Promise<true | null> {
    const connection = this.#managed(clientId)
    if (connection === null) return null
    const { userId, claims, held } = connection
    const { maxSubscriptionsPerConnection } = this.#options
    return await this.grant({ request: null, userId, claims }, [subscription], () => {
      // The connection may have ended, or gained subscriptions, during the authorization.
      if (this.#managed(clientId) === null) return null
      if (held.has(subscription)) return true
      if (held.size >= maxSubscriptionsPerConnection) throw new TooManySubscriptions(maxSubscriptionsPerConnection)
      this.#registry.subscribe(connection, subscription)
      connection.added(subscription)
      return true
    })
  }

  #managed (clientId: string): H | null {
    const connection = this.#registry.client(clientId)
    return connection?.managed === true ? connection : null
  }

  async #ask<T> (applicant: Applicant, subscriptions: Iterable<string>, grant: () => T): Promise<T> {
    const pending: Pending = { userId: applicant.userId, stale: true }
    this.#pending.add(pending)
    try {
      while (pending.stale) {
        pending.stale = false
        await Promise.all(Array.from(subscriptions, subscriptionId => this.#authorize({ ...applicant, subscriptionId })))
      }
      return grant()
    } finally {
      this.#pending.delete(pending)
    }
  }

  /** Revokes a topic or pattern from all connections of a user on this node. Returns the number of connections that held it. */
  revoke (userId: string, subscription: string, reason: string): number {
    this.disturb(id => id === userId)
    return this.#registry.user(userId).filter(connection => this.#take(connection, subscription, reason)).length
  }

  /** Authorizes all subscriptions of a user again on this node. Resolves with the number of revoked subscriptions. */
  async reauthorize (userId: string, reason: string): Promise<number> {
    this.disturb(id => id === userId)
    const connections = this.#registry.user(userId)
    for (const connection of connections) connection.reconsider()
    if (this.#options.authorizeSubscription === undefined) return 0
    const taken = await Promise.all(connections.map(connection => this.#reauthorizeOne(connection, reason)))
    return taken.reduce((sum, count) => sum + count, 0)
  }

  /** Delays events during the check: on a node that was disconnected, events can follow the command immediately. */
  async #reauthorizeOne (connection: H, reason: string): Promise<number> {
    let taken = 0
    connection.hold()
    try {
      await Promise.all(Array.from(connection.held, async subscription => {
        if (!await this.#stillHas(connection, subscription) && this.#take(connection, subscription, reason)) taken++
      }))
    } finally {
      connection.endHold()
    }
    return taken
  }

  /**
   * Calls `authorizeSubscription`. An exception of it becomes the cause of SSE_ERR_AUTHENTICATION_FAILED.
   * @throws SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_AUTHENTICATION_FAILED
   */
  async #authorize (question: SubscriptionQuestion): Promise<void> {
    const authorizeSubscription = this.#options.authorizeSubscription!
    let allowed = false
    try {
      // Only `true` allows the subscription: truthy values can come from a forgotten `await`.
      // Without a request, the caller can be on another node. `inNoContext` gives the same context on all nodes.
      allowed = await (question.request === null ? inNoContext(() => authorizeSubscription(question)) : authorizeSubscription(question)) === true
    } catch (cause) {
      throw new AuthenticationFailed(`: authorizeSubscription failed for subscription ${quote(question.subscriptionId)}`, { cause })
    }
    if (!allowed) throw new SubscriptionForbidden(quote(question.subscriptionId), 'authorizeSubscription did not return true')
  }

  async #stillHas (connection: H, subscriptionId: string): Promise<boolean> {
    const { userId, claims } = connection
    try {
      await this.#authorize({ request: null, userId, claims, subscriptionId })
      return true
    } catch (err) {
      // If the check fails, the subscription is revoked as if it were forbidden.
      if (!(err instanceof SubscriptionForbidden)) this.#log.error({ err, clientId: connection.clientId, subscriptionId }, 'authorizeSubscription failed; the subscription is revoked')
      return false
    }
  }

  /**
   * Removes a subscription from a connection of this node. Queued events that it no longer receives are not sent. Returns false if the
   * connection did not hold it, and null if the connection does not exist.
   */
  remove (clientId: string, subscription: string): boolean | null {
    const connection = this.#managed(clientId)
    if (connection === null) return null
    if (!this.#registry.unsubscribe(connection, subscription)) return false
    connection.sift()
    return true
  }

  #take (connection: H, subscription: string, reason: string): boolean {
    if (!this.#registry.unsubscribe(connection, subscription)) return false
    connection.reconsider()
    connection.tellUnsubscribed(subscription, reason)
    return true
  }

  /** Makes pending authorizations run again, because the rights of the users that `whose` selects have changed. */
  disturb (whose: (userId: string | null) => boolean): void {
    for (const pending of this.#pending) if (whose(pending.userId)) pending.stale = true
  }
}
