import { InvalidTarget } from '../errors.js'
import { currentContext, type AsyncContext } from '../util/async-context.js'
import { assertTopic } from './topic.js'
import { bytesOfText, ownText } from '../util/text.js'
import type { Subscriber } from './subscriber.js'
import type { EventOptions } from './event-input.js'

/** Who gets a broadcast, and how. Users and subscriptions intersect; nothing named means everyone. */
export interface BroadcastOptions extends Target, EventOptions {
  /** Not logged: no id, no replay, and dropped first under pressure. Default false. */
  ephemeral?: boolean
  /** This node only; implies `ephemeral`. Default false. */
  local?: boolean
}

/** Who gets a message. Named users and named topics intersect; nothing named means everyone. */
export interface Target {
  /** Users, by id. */
  readonly userIds?: readonly string[]
  /** Topics; every connection with a subscription that covers one of them. */
  readonly subscriptionIds?: readonly string[]
  /** Connections, by client id. */
  readonly clientIds?: readonly string[]
  /** Connections left out, by client id. */
  readonly exceptClientIds?: readonly string[]
  /** Connections for which this returns exactly `true`. Never crosses nodes. */
  filter? (connection: Subscriber): boolean
  /** The publisher's AsyncLocalStorage context, in which the filter is called. @internal */
  readonly filterContext?: AsyncContext
}

/** What each id in a target takes beside its text, in bytes. */
const ID_BYTES = 32
/** What a filter counts for. What it closes over cannot be measured: often a request, with its body. */
const FILTER_BYTES = 16 * 1024

/**
 * Whom a broadcast's options name. A list that is there but no list, or a misspelt name, is an error: the event would go to
 * everyone. An empty list is nobody. Lists and ids are copied: the log keeps them.
 * @throws SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_TOPIC
 */
export function createTarget (options: BroadcastOptions): Target {
  if (!isPlain(options)) throw new InvalidTarget('options must be a plain object, not a promise of one')
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
        if (typeof options.filter !== 'function') throw new InvalidTarget('filter must be a function')
        target.filter = options.filter
        target.filterContext = currentContext()
        break
      case 'ephemeral':
      case 'local':
        if (options[name] !== undefined && typeof options[name] !== 'boolean') throw new InvalidTarget(`${name} must be a boolean`)
        break
      case 'priority':
      case 'retry':
      case 'key':
        break
      default:
        throw new InvalidTarget(`has an unknown property ${JSON.stringify(name.slice(0, 80))}: it has userIds, subscriptionIds, clientIds, exceptClientIds, filter, priority, retry, key, ephemeral and local`)
    }
  }
  target.subscriptionIds?.forEach(assertTopic)
  return target
}

/** Rejects objects such as an unawaited promise: without a target the event would reach everyone. */
function isPlain (options: unknown): options is object {
  if (typeof options !== 'object' || options === null) return false
  // Of any realm: the end of the chain, or next to it.
  const prototype: unknown = Object.getPrototypeOf(options)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

function copyOf (ids: unknown, name: string): readonly string[] {
  if (!Array.isArray(ids) || !ids.every(isId)) throw new InvalidTarget(`${name} must be an array of strings`)
  return ids.map(ownText)
}

/** What the ids of a target take in memory. */
export function bytesOfIds ({ userIds, subscriptionIds, clientIds, exceptClientIds }: Target): number {
  return bytesOfList(userIds) + bytesOfList(subscriptionIds) + bytesOfList(clientIds) + bytesOfList(exceptClientIds)
}

/** What keeping a target takes in memory. */
export function bytesOfTarget (target: Target): number {
  return bytesOfIds(target) + (target.filter === undefined ? 0 : FILTER_BYTES)
}

function bytesOfList (ids: readonly string[] | undefined): number {
  let bytes = 0
  if (ids !== undefined) for (const id of ids) bytes += ID_BYTES + bytesOfText(id)
  return bytes
}

function isId (id: unknown): id is string {
  return typeof id === 'string' && id !== ''
}

/**
 * Ids of users and clients are strings. A number, as databases have them, would name no connection: what it should disconnect would stay.
 * @throws SSE_ERR_INVALID_TARGET
 */
export function assertId (id: unknown, name: 'clientId' | 'userId'): asserts id is string {
  if (!isId(id)) throw new InvalidTarget(`${name} must be a string that is not empty, not ${typeof id === 'string' ? 'an empty one' : id === null ? 'null' : `a value of type ${typeof id}`}`)
}
