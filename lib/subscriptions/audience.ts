import type { Claims } from '../events/event-input.js'
import { InvalidOption, InvalidTarget } from '../errors.js'
import type { Subscriber } from '../events/subscriber.js'
import type { Target } from '../events/target.js'
import { inContext } from '../util/async-context.js'
import type { Log } from '../util/logger.js'
import type { Member, Registry } from './registry.js'

/** The argument of `authorizeTopic`. */
export interface TopicQuestion {
  /** The authenticated user id; null for an anonymous connection. */
  readonly userId: string | null
  /** The claims that `authHandler` returned with the user. */
  readonly claims: Claims | undefined
  /** The topic that the event was published to. */
  readonly topic: string
  /** The connection, which holds a pattern that covers the topic. */
  readonly connection: Subscriber
}

/**
 * The option `authorizeTopic`: returns `true` if a connection can receive an event of a topic that only its pattern covers. Any
 * other result withholds the event, and so does an exception. It is called for each delivery and replay, and must be synchronous.
 */
export type AuthorizeTopic = (question: TopicQuestion) => boolean

const NOT_A_PROMISE = 'must return true or false, not a promise'

/** The options that restrict receivers. */
export interface AudienceOptions {
  /** See `SSEOptions`. */
  readonly authorizeTopic?: AuthorizeTopic | undefined
}

/** A connection that can receive broadcasts. */
export interface Receiver extends Member, Subscriber {}

/**
 * Selects the receivers of a message: connections that match its target, its filter and `authorizeTopic`. Live delivery selects all
 * of them; a replay checks one connection. @internal
 */
export class Audience<R extends Receiver> {
  readonly #options: AudienceOptions
  readonly #registry: Registry<R>
  readonly #log: Log

  constructor (options: AudienceOptions, registry: Registry<R>, log: Log) {
    this.#options = options
    this.#registry = registry
    this.#log = log
  }

  /** Returns the current receivers of a message with this target, each once. */
  select (target: Target): readonly R[] {
    let receivers = this.#registry.select(target)
    if (this.#limits(target)) receivers = receivers.filter(connection => this.#permits(connection, target))
    if (target.filter === undefined) return receivers
    return inFilterContext(target, () => receivers.filter(connection => this.#passes(target, connection)))
  }

  /** Returns whether a connection currently receives messages with this target. */
  includes (connection: R, target: Target): boolean {
    return this.#registry.isTargeted(connection, target) && this.#permits(connection, target) &&
      (target.filter === undefined || inFilterContext(target, () => this.#passes(target, connection)))
  }

  /**
   * Returns whether a connection receives events of this topic: it holds the topic, or it holds a pattern that covers the topic and
   * `authorizeTopic` allows it.
   */
  hears (connection: R, topic: string): boolean {
    return this.#registry.holds(connection, topic) && this.#permits(connection, { subscriptionIds: [topic] })
  }

  /** Returns whether `authorizeTopic` applies to the receivers of this target. */
  #limits ({ subscriptionIds }: Target): boolean {
    return subscriptionIds !== undefined && this.#options.authorizeTopic !== undefined
  }

  /**
   * Returns whether a targeted connection is allowed to receive. A topic that it holds itself was authorized when it was subscribed.
   * For a topic that only a pattern covers, `authorizeTopic` is called.
   */
  #permits (connection: R, target: Target): boolean {
    const { subscriptionIds } = target
    if (subscriptionIds === undefined || this.#options.authorizeTopic === undefined) return true
    return subscriptionIds.some(topic => connection.held.has(topic)) || subscriptionIds.some(topic => this.#registry.holds(connection, topic) && this.#allows(connection, topic))
  }

  /** The event is withheld if `authorizeTopic` throws. */
  #allows (connection: R, topic: string): boolean {
    const { userId, claims } = connection
    try {
      const answer: unknown = this.#options.authorizeTopic!({ userId, claims, topic, connection })
      if (!(answer instanceof Promise)) return answer === true
      answer.catch(() => {})
      return this.#failed(connection, 'authorizeTopic returned a promise', new InvalidOption('authorizeTopic', NOT_A_PROMISE), topic)
    } catch (err) {
      return this.#failed(connection, 'authorizeTopic threw', err, topic)
    }
  }

  /** The connection is left out if the filter throws. */
  #passes ({ filter }: Target, connection: R): boolean {
    try {
      const answer: unknown = filter!(connection)
      if (!(answer instanceof Promise)) return answer === true
      answer.catch(() => {})
      return this.#failed(connection, 'A broadcast filter returned a promise', new InvalidTarget(`filter ${NOT_A_PROMISE}`))
    } catch (err) {
      return this.#failed(connection, 'A broadcast filter threw', err)
    }
  }

  /** A promise is logged too: otherwise an async function would silently exclude all connections. */
  #failed ({ clientId }: R, fault: string, err: unknown, topic?: string): false {
    this.#log.error({ err, clientId, topic }, `${fault}; the connection does not receive the event`)
    return false
  }
}

/** Calls a function in the context of the filter's publisher, or in the current one if a broker copied the target without it. */
function inFilterContext<T> ({ filterContext }: Target, task: () => T): T {
  return filterContext === undefined ? task() : inContext(filterContext, task)
}
