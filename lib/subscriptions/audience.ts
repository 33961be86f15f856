import { InvalidOption, InvalidTarget } from '../errors.js'
import type { Subscriber } from '../events/subscriber.js'
import type { Target } from '../events/target.js'
import { inContext } from '../util/async-context.js'
import type { Log } from '../util/logger.js'
import type { Member, Registry } from './registry.js'

/** What `authorizeTopic` is asked. */
export interface TopicQuestion {
  /** The authenticated user id; null for an anonymous connection. */
  readonly userId: string | null
  /** The claims that `authHandler` returned with the user. */
  readonly claims: unknown
  /** The topic that the event was published to. */
  readonly topic: string
  /** The connection that holds a pattern of the topic. */
  readonly connection: Subscriber
}

export type AuthorizeTopic = (question: TopicQuestion) => boolean

/** The options that decide about receivers. */
export interface AudienceOptions {
  readonly authorizeTopic?: AuthorizeTopic | undefined
}

/** A connection that can receive broadcasts. */
export interface Receiver extends Member, Subscriber {}

/**
 * Who receives a message: the connections that its target names, that may hear its topics, and that its filter lets through.
 * Live delivery asks for all of them, a replay about one connection. @internal
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

  /** The connections that receive a message with this target now, each once. */
  select (target: Target): readonly R[] {
    let receivers = this.#registry.select(target)
    if (this.#limits(target)) receivers = receivers.filter(connection => this.#permits(connection, target))
    if (target.filter === undefined) return receivers
    return inFilterContext(target, () => receivers.filter(connection => this.#passes(target, connection)))
  }

  /** Whether one connection receives a message with this target, as things stand now. */
  includes (connection: R, target: Target): boolean {
    return this.#registry.isTargeted(connection, target) && this.#permits(connection, target) &&
      (target.filter === undefined || inFilterContext(target, () => this.#passes(target, connection)))
  }

  /** Whether events of this topic are for the connection: it holds the topic, or a pattern that covers it and `authorizeTopic` agrees. */
  hears (connection: R, topic: string): boolean {
    return this.#registry.holds(connection, topic) && this.#permits(connection, { subscriptionIds: [topic] })
  }

  /** Whether `authorizeTopic` applies to the receivers of this target. */
  #limits ({ subscriptionIds }: Target): boolean {
    return subscriptionIds !== undefined && this.#options.authorizeTopic !== undefined
  }

  /** Whether a connection that a target names may hear it. A topic that it holds itself was authorized then; a topic that only a pattern covers is asked about now. */
  #permits (connection: R, target: Target): boolean {
    const { subscriptionIds } = target
    if (subscriptionIds === undefined || this.#options.authorizeTopic === undefined) return true
    return subscriptionIds.some(topic => connection.held.has(topic)) || subscriptionIds.some(topic => this.#registry.holds(connection, topic) && this.#allows(connection, topic))
  }

  /** The event is withheld if `authorizeTopic` throws. */
  #allows (connection: R, topic: string): boolean {
    const { userId, claims } = connection
    try {
      return isYes(this.#options.authorizeTopic!({ userId, claims, topic, connection }), () => new InvalidOption('authorizeTopic', 'must answer true or false at once, not by a promise'))
    } catch (err) {
      this.#log.error({ err, clientId: connection.clientId, topic }, 'authorizeTopic threw; the event is withheld from the connection')
      return false
    }
  }

  /** The connection is left out if the filter throws. */
  #passes (target: Target, connection: R): boolean {
    try {
      const { filter } = target
      return isYes(filter!(connection), () => new InvalidTarget('has an async filter: it must answer true or false at once'))
    } catch (err) {
      this.#log.error({ err, clientId: connection.clientId }, 'A broadcast filter threw; the connection is left out')
      return false
    }
  }
}

/** Calls a function in the context of the filter's publisher. A broker that copies the target may have lost it. */
function inFilterContext<T> ({ filterContext }: Target, task: () => T): T {
  return filterContext === undefined ? task() : inContext(filterContext, task)
}

/** Only `true` is a yes. A promise is no answer during a delivery: the caller throws, because the author of an async function would wonder. */
function isYes (answer: unknown, asynchronous: () => Error): boolean {
  if (!(answer instanceof Promise)) return answer === true
  answer.catch(() => {})
  throw asynchronous()
}
