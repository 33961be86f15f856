import { authorize } from '../access/authentication.js'
import type { Target } from '../log/broker.js'
import type { SSEConnection } from '../connections/connection.js'
import { InvalidOption, SubscriptionForbidden } from '../errors.js'
import type { Log } from '../util/logger.js'
import type { AnyRequest, ResolvedOptions } from '../options.js'
import type { Registry } from './registry.js'
import { isYes } from './yes.js'

/** Somebody who is on the way in, or to another subscription. */
interface Arrival {
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

/** What connections may hear: granted when they ask, looked at for each event that only a pattern covers, and taken away. @internal */
export class Rights {
  readonly #options: ResolvedOptions
  readonly #registry: Registry<SSEConnection>
  readonly #log: Log
  readonly #arrivals = new Set<Arrival>()

  constructor (options: ResolvedOptions, registry: Registry<SSEConnection>, log: Log) {
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

  async #ask<T> (applicant: Applicant, subscriptions: Iterable<string>, grant: () => T): Promise<T> {
    const arrival: Arrival = { userId: applicant.userId, stale: true }
    this.#arrivals.add(arrival)
    try {
      while (arrival.stale) {
        arrival.stale = false
        await Promise.all(Array.from(subscriptions, subscriptionId => authorize(this.#options, { ...applicant, subscriptionId })))
      }
      return grant()
    } finally {
      this.#arrivals.delete(arrival)
    }
  }

  /** Whether events of this topic are for the connection: it holds the topic, or a pattern that covers it and `authorizeTopic` agrees. */
  covers (connection: SSEConnection, topic: string): boolean {
    return this.#registry.holds(connection, topic) && this.permits(connection, { subscriptionIds: [topic] })
  }

  /** Whether each receiver of this target has to be looked at. */
  limits ({ subscriptionIds }: Target): boolean {
    return subscriptionIds !== undefined && this.#options.authorizeTopic !== undefined
  }

  /** Whether a connection that a target names may hear it. A topic that it holds itself was authorized then; one that only a pattern covers is asked about now. */
  permits (connection: SSEConnection, target: Target): boolean {
    const { subscriptionIds } = target
    if (subscriptionIds === undefined || this.#options.authorizeTopic === undefined) return true
    return subscriptionIds.some(topic => connection.held.has(topic)) || subscriptionIds.some(topic => this.#registry.holds(connection, topic) && this.#allows(connection, topic))
  }

  #allows (connection: SSEConnection, topic: string): boolean {
    const { userId, claims } = connection
    try {
      return isYes(this.#options.authorizeTopic!({ userId, claims, topic, connection }), () => new InvalidOption('authorizeTopic', 'must answer true or false at once, not by a promise'))
    } catch (err) {
      this.#log.error({ err, clientId: connection.clientId, topic }, 'authorizeTopic threw; the event is withheld from the connection')
      return false
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
  async #reauthorizeOne (connection: SSEConnection, reason: string): Promise<number> {
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

  async #stillHas (connection: SSEConnection, subscriptionId: string): Promise<boolean> {
    const { userId, claims } = connection
    try {
      await authorize(this.#options, { request: null, userId, claims, subscriptionId })
      return true
    } catch (err) {
      // A right that cannot be shown is none.
      if (!(err instanceof SubscriptionForbidden)) this.#log.error({ err, clientId: connection.clientId, subscriptionId }, 'authorizeSubscription failed; the subscription is taken away')
      return false
    }
  }

  /** Takes a topic or pattern from one connection at the application's wish. Its events that wait are not sent. */
  remove (connection: SSEConnection, subscription: string): boolean {
    if (!this.#registry.unsubscribe(connection, subscription)) return false
    connection.sift()
    return true
  }

  #take (connection: SSEConnection, subscription: string, reason: string): boolean {
    if (!this.#registry.unsubscribe(connection, subscription)) return false
    connection.reconsider()
    connection.tellUnsubscribed(subscription, reason)
    return true
  }

  /** The rights of these users have changed: what the application has said of those on the way in counts no more. */
  disturb (whose: (userId: string | null) => boolean): void {
    for (const arrival of this.#arrivals) if (whose(arrival.userId)) arrival.stale = true
  }
}
