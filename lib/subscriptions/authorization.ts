import { AuthenticationFailed, SubscriptionForbidden, TooManySubscriptions, UnknownConnection } from '../errors.js'
import type { Log } from '../util/logger.js'
import { inNoContext } from '../util/async-context.js'
import { quote } from '../util/quote.js'
import type { AnyRequest } from '../wire/http.js'
import type { Receiver } from './audience.js'
import type { Registry } from './registry.js'

export interface SubscriptionQuestion {
  readonly request: AnyRequest | null
  readonly userId: string | null
  readonly claims: unknown
  readonly subscriptionId: string
}

export type AuthorizeSubscription = (question: SubscriptionQuestion) => boolean | Promise<boolean>

/** A pending authorization, of a new connection or an added subscription. */
interface Pending {
  readonly userId: string | null
  /** The user's rights have changed since the application was asked about them. */
  stale: boolean
}

/** Who asks to hold subscriptions. */
export interface Applicant {
  readonly request: AnyRequest | null
  readonly userId: string | null
  readonly claims: unknown
}

/** The options that decide about subscriptions. */
export interface SubscriptionOptions {
  readonly authorizeSubscription?: AuthorizeSubscription | undefined
  readonly maxSubscriptionsPerConnection: number
}

/** A connection whose subscriptions can change. */
export interface Holder extends Receiver {
  /** Rights have changed: events that wait are checked again, and the stream is cut if one that is being written is not for it any more. */
  reconsider (): void
  /** A subscription was removed: events that wait are checked again. */
  sift (): void
  /** Holds back what is published from now on, until `letGo()`. */
  hold (): void
  letGo (): void
  tellUnsubscribed (subscriptionId: string, reason: string): void
}

/**
 * What was done for a connection, or read of it; null if there is no such connection.
 * @throws SSE_ERR_UNKNOWN_CONNECTION
 */
export function known<R> (clientId: string, result: R | null): R {
  if (result === null) throw new UnknownConnection(quote(clientId))
  return result
}

/** The subscriptions of the connections of this node: granted when they are asked for, and taken away. @internal */
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
   * Asks whether the applicant may hold the subscriptions, again for as long as rights of that user are taken away
   * meanwhile. `grant` is called in the same instant as the last answer is known to hold: no revocation fits between.
   * @throws SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_AUTHENTICATION_FAILED.
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
      // It may have ended, or received others, while the application was asked.
      if (this.#managed(clientId) === null) return null
      if (!held.has(subscription) && held.size >= maxSubscriptionsPerConnection) throw new TooManySubscriptions(maxSubscriptionsPerConnection)
      this.#registry.subscribe(connection, subscription)
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

  /** Takes a topic or pattern from all connections of a user. Returns from how many. */
  revoke (userId: string, subscription: string, reason: string): number {
    this.disturb(id => id === userId)
    return [...this.#registry.user(userId)].filter(connection => this.#take(connection, subscription, reason)).length
  }

  /** Asks again about everything that the connections of a user hold. Resolves with how many subscriptions were taken away. */
  async reauthorize (userId: string, reason: string): Promise<number> {
    this.disturb(id => id === userId)
    const connections = [...this.#registry.user(userId)]
    for (const connection of connections) connection.reconsider()
    if (this.#options.authorizeSubscription === undefined) return 0
    const taken = await Promise.all(connections.map(connection => this.#reauthorizeOne(connection, reason)))
    return taken.reduce((sum, count) => sum + count, 0)
  }

  /** What is published meanwhile waits: on a node that was away it may follow the command at once. */
  async #reauthorizeOne (connection: H, reason: string): Promise<number> {
    let taken = 0
    connection.hold()
    try {
      await Promise.all(Array.from(connection.held, async subscription => {
        if (!await this.#stillHas(connection, subscription) && this.#take(connection, subscription, reason)) taken++
      }))
    } finally {
      connection.letGo()
    }
    return taken
  }

  /** Throws SSE_ERR_SUBSCRIPTION_FORBIDDEN unless the application allows the subscription, SSE_ERR_AUTHENTICATION_FAILED with the cause when its code fails. */
  async #authorize (question: SubscriptionQuestion): Promise<void> {
    const { authorizeSubscription } = this.#options
    if (authorizeSubscription === undefined) return
    let allowed = false
    try {
      // Only `true` is a yes: a forgotten await or a truthy object is not.
      // Without a request the caller may be on any node: the application is asked in the same context as there.
      allowed = await (question.request === null ? inNoContext(() => authorizeSubscription(question)) : authorizeSubscription(question)) === true
    } catch (cause) {
      throw new AuthenticationFailed({ cause })
    }
    if (!allowed) throw new SubscriptionForbidden(quote(question.subscriptionId), 'authorizeSubscription did not return true')
  }

  async #stillHas (connection: H, subscriptionId: string): Promise<boolean> {
    const { userId, claims } = connection
    try {
      await this.#authorize({ request: null, userId, claims, subscriptionId })
      return true
    } catch (err) {
      // A right that cannot be shown is none.
      if (!(err instanceof SubscriptionForbidden)) this.#log.error({ err, clientId: connection.clientId, subscriptionId }, 'authorizeSubscription failed; the subscription is taken away')
      return false
    }
  }

  /** Removes a subscription from a connection of this node, at the application's request. Events that wait for it are not sent. Null if there is no such connection. */
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

  /** The rights of these users have changed: what the application has said of those on the way in counts no more. */
  disturb (whose: (userId: string | null) => boolean): void {
    for (const pending of this.#pending) if (whose(pending.userId)) pending.stale = true
  }
}
