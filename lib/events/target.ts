import { InvalidTarget } from '../errors.js'
import { currentContext, type AsyncContext } from '../util/async-context.js'
import { kindOf, quote, shown } from '../util/quote.js'
import { alternatives } from '../util/suggestion.js'
import { assertTopic } from './topic.js'
import { bytesOfText, ownText } from '../util/text.js'
import type { Subscriber } from './subscriber.js'
import type { EventOptions } from './event-input.js'

/**
 * The receivers and the delivery of a broadcast. A connection must match every list that is given. Without a list, every
 * connection receives the event. `priority`, `retry` and `key` override those of the event.
 */
export interface BroadcastOptions extends Target, EventOptions {
  /**
   * Whether the event is not logged: it has no id, is not replayed, and is dropped first when memory is short. Default false.
   */
  ephemeral?: boolean
  /** Whether only connections of this node receive the event. Implies `ephemeral`. Default false. */
  local?: boolean
}

/**
 * The receivers and the delivery of an event that a publisher publishes: `BroadcastOptions` without `local` and `filter`, which need a
 * node with connections.
 */
export interface PublishOptions extends Omit<BroadcastOptions, 'local' | 'filter' | 'filterContext'> {
  /** A publisher has no connections: the event goes to those of all nodes. */
  local?: false
  /** A function cannot reach the nodes. Name `userIds`, `subscriptionIds` or `clientIds` instead. */
  filter?: never
}

/** The receivers of a message. A connection must match every list that is given. Without a list, every connection matches. */
export interface Target {
  /** User ids. Connections of these users match; an empty list matches none. */
  readonly userIds?: readonly string[]
  /** Topics. Connections that hold one of them, or a pattern that covers one, match; an empty list matches none. */
  readonly subscriptionIds?: readonly string[]
  /** Client ids. These connections match; an empty list matches none. */
  readonly clientIds?: readonly string[]
  /** Client ids of connections that do not receive the message. */
  readonly exceptClientIds?: readonly string[]
  /**
   * Returns `true` for connections that receive the message; any other result excludes the connection. On a log that nodes share,
   * a filter requires `local: true`.
   */
  filter? (connection: Subscriber): boolean
  /** The publisher's AsyncLocalStorage context, in which the filter is called. @internal */
  readonly filterContext?: AsyncContext
}

/** Names of the options of a broadcast. */
const NAMES: readonly (keyof BroadcastOptions)[] = ['userIds', 'subscriptionIds', 'clientIds', 'exceptClientIds', 'filter', 'priority', 'retry', 'key', 'ephemeral', 'local']
/** Memory of an id in a target beside its text, in bytes. */
const ID_BYTES = 32
/** Assumed memory of a filter in bytes. Its closure cannot be measured: it often holds a request with its body. */
const FILTER_BYTES = 16 * 1024

/**
 * Returns the target in the options of a broadcast. Rejects misspelt names and values that are not lists: the event would reach
 * every connection. Lists and ids are copied, because the log keeps them.
 * @throws SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_TOPIC
 */
export function createTarget (options: BroadcastOptions): Target {
  if (!isPlain(options)) throw new InvalidTarget(`options must be a plain object, got ${kindOf(options)}`)
  const target: { -readonly [K in keyof Target]: Target[K] } = {}
  for (const name of Object.keys(options)) {
    switch (name) {
      case 'userIds':
      case 'subscriptionIds':
      case 'clientIds':
      case 'exceptClientIds':
        target[name] = copyOf(options[name], name)
        break
      case 'filter':
        if (typeof options.filter !== 'function') throw new InvalidTarget(`filter must be a function, got ${kindOf(options.filter)}`)
        target.filter = options.filter
        target.filterContext = currentContext()
        break
      case 'ephemeral':
      case 'local':
        if (options[name] !== undefined && typeof options[name] !== 'boolean') throw new InvalidTarget(`${name} must be a boolean, got ${shown(options[name])}`)
        break
      case 'priority':
      case 'retry':
      case 'key':
        break
      default:
        throw new InvalidTarget(`has an unknown property ${quote(name)}${alternatives(name, NAMES)}`)
    }
  }
  target.subscriptionIds?.forEach(assertTopic)
  return target
}

/** Rejects objects such as an unawaited promise: without a target the event would reach everyone. */
function isPlain (options: unknown): options is object {
  if (typeof options !== 'object' || options === null) return false
  // Object.prototype of another realm is a different object, so the length of the prototype chain is checked.
  const prototype: unknown = Object.getPrototypeOf(options)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

function copyOf (ids: unknown, name: string): readonly string[] {
  if (!Array.isArray(ids)) throw new InvalidTarget(`${name} must be an array of strings, got ${kindOf(ids)}`)
  const wrong = ids.findIndex(id => !isId(id))
  if (wrong >= 0) throw new InvalidTarget(`${name}[${wrong}] ${faultOfId(ids[wrong])}`)
  return ids.map(ownText)
}

/**
 * Rejects the options that only a node has.
 * @throws SSE_ERR_INVALID_TARGET
 */
export function assertPublishOptions (options: BroadcastOptions): void {
  if (options?.local === true) throw new InvalidTarget('has local: true, but a publisher has no connections: omit it, and the event goes to those of all nodes')
  if (options?.filter !== undefined) throw new InvalidTarget('has a filter, but a function cannot reach the nodes: name userIds, subscriptionIds or clientIds instead')
}

/** Returns the memory of the ids of a target in bytes. */
export function bytesOfIds ({ userIds, subscriptionIds, clientIds, exceptClientIds }: Target): number {
  return bytesOfList(userIds) + bytesOfList(subscriptionIds) + bytesOfList(clientIds) + bytesOfList(exceptClientIds)
}

/** Returns the memory of a stored target in bytes, its filter included. */
export function bytesOfTarget (target: Target): number {
  return bytesOfIds(target) + (target.filter === undefined ? 0 : FILTER_BYTES)
}

function bytesOfList (ids: readonly string[] | undefined): number {
  let bytes = 0
  if (ids !== undefined) for (const id of ids) bytes += ID_BYTES + bytesOfText(id)
  return bytes
}

/** Returns whether a value is a string that is not empty. */
export function isId (id: unknown): id is string {
  return typeof id === 'string' && id !== ''
}

/** Returns the fault of a value that is no id. */
export function faultOfId (id: unknown): string {
  return `must be a string that is not empty, got ${shown(id)}${typeof id === 'number' ? ': use String(id)' : ''}`
}

/**
 * Rejects an id that is not a string, or empty. A numeric id of a database would match no connection: `disconnectUser(7)` would
 * disconnect no connection.
 * @throws SSE_ERR_INVALID_TARGET
 */
export function assertId (id: unknown, name: 'clientId' | 'userId'): asserts id is string {
  if (!isId(id)) throw new InvalidTarget(`${name} ${faultOfId(id)}`)
}
