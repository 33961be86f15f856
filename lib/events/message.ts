import { createHash } from 'node:crypto'
import { Buffer } from 'node:buffer'
import { checkBuiltIn, type NotificationLevel, type Catalogue } from './catalogue.js'
import { InvalidEvent, InvalidId, InvalidKey } from '../errors.js'
import { assertEventName, assertEventSize, assertPriority, assertRetry, EventPriority, serialize } from './event-rules.js'
import { bytesOfIds, bytesOfTarget, createTarget, type Target, type BroadcastOptions } from './target.js'
import { kindOf, quote } from '../util/quote.js'
import { alternatives } from '../util/suggestion.js'
import { bytesOfText, ownText } from '../util/text.js'
import type { NotificationInput, EventInput, ResourcePayload, ResourceName } from './event-input.js'

/** A message to publish. */
export interface OutgoingMessage {
  /** Name of the event. */
  readonly event: string
  /** The serialised text of the `data:` lines. Nodes send it without serialising it again. */
  readonly data: string
  /** Reconnection time for the client in milliseconds. Absent or undefined: unchanged. */
  readonly retry?: number | undefined
  /** Order of delivery to a client with a backlog. */
  readonly priority: EventPriority
  /** Conflation key: the message replaces older undelivered messages with the same key and target. */
  readonly key?: string | undefined
  /** The receivers. */
  readonly target: Target
  /** Whether the message is not logged: it has no id, is not replayed, and can be dropped when memory is short. */
  readonly ephemeral: boolean
  /**
   * Set for messages between nodes; absent for events of the application.
   * - `node`, ephemeral: a heartbeat or an answer. A broker that drops ephemeral messages keeps these apart from those of the
   *   application. It may deliver them earlier or later than the application's messages.
   * - `node`, logged: a command. Its order in the log matters, and `gap` reports whether a command was lost.
   *
   * A broker that drops no message can ignore this property, and does not have to pass it on to `deliver`.
   */
  readonly channel?: 'node' | undefined
}

/** A message of the log. */
export interface Message extends OutgoingMessage {
  /** Sequence number, from 1, without holes within an epoch; 0 for an ephemeral message. */
  readonly seq: number
}

const MAX_KEY_LENGTH = 256
/** Longer conflation keys are stored as a digest. Otherwise the key of an event with thousands of ids would use as much memory as its target. */
const MAX_CONFLATION_LENGTH = 128
const KEYS: readonly string[] = ['event', 'data', 'priority', 'retry', 'key']

/** The options that every message is held to. */
export interface MessageOptions {
  readonly events?: Catalogue<any, any> | undefined
  readonly maxEventBytes: number
}

/**
 * Checks and serialises an event, and returns the message to publish. All messages have the same properties in the same order,
 * so that V8 shares one hidden class. The log keeps the message, so it has no further properties.
 * @throws SSE_ERR_INVALID_EVENT, SSE_ERR_INVALID_EVENT_NAME, SSE_ERR_INVALID_ID, SSE_ERR_INVALID_KEY, SSE_ERR_INVALID_RETRY,
 * SSE_ERR_INVALID_DATA, SSE_ERR_INVALID_PRIORITY, SSE_ERR_INVALID_PAYLOAD, SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_TOPIC,
 * SSE_ERR_UNKNOWN_EVENT, SSE_ERR_UNKNOWN_RESOURCE, SSE_ERR_EVENT_TOO_LARGE
 */
export function composeMessage (input: EventInput, options: BroadcastOptions, { events, maxEventBytes }: MessageOptions): Message {
  assertKeys(input)
  const target = createTarget(options)
  const { event = 'message', priority: ownPriority = EventPriority.NORMAL } = input
  const { priority = ownPriority, retry = input.retry, key = input.key } = options
  assertEventName(event)
  assertPriority(priority)
  if (retry !== undefined) assertRetry(retry)
  if (key !== undefined && (typeof key !== 'string' || key.length === 0 || key.length > MAX_KEY_LENGTH)) throw new InvalidKey(MAX_KEY_LENGTH)
  const data = complete(event, input.data)
  if (events === undefined) checkBuiltIn(event, data)
  else events.check(event, data)
  const text = serialize(data)
  // Key and target count too: every node reads and stores them.
  assertEventSize(event, text, bytesOfIds(target) + (key === undefined ? 0 : Buffer.byteLength(key)), maxEventBytes)
  return { event: ownText(event), data: text, priority, retry, key: key === undefined ? undefined : ownText(key), target, ephemeral: options.ephemeral === true || options.local === true, seq: 0 }
}

/** Rejects unknown properties: a misspelt name would change the event, and a target among them would not limit the receivers. */
function assertKeys (input: EventInput): void {
  if (typeof input !== 'object' || input === null || Array.isArray(input)) throw new InvalidEvent(`must be an object { event?, data, … }, got ${kindOf(input)}`)
  // Rows and lists are often passed as they are, to a broadcast or as the state of `snapshot.load`.
  const [first] = Object.keys(input)
  if (first !== undefined && !('event' in input) && !('data' in input)) throw new InvalidEvent(`has no data, but ${quote(first)}: write { event: "orders", data: … }, also around a list that snapshot.load returns`)
  if ('id' in input) throw new InvalidId('is assigned by the log; only reply.sse(source) accepts ids')
  for (const key of Object.keys(input)) if (!KEYS.includes(key)) throw new InvalidEvent(`has an unknown property ${quote(key)}${alternatives(key, KEYS)}; receivers belong in the options of the broadcast`)
}

/** Adds the level `info` to a notification without a level. */
function complete (event: string, data: unknown): unknown {
  if (event !== 'notification' || kindOf(data) !== 'an object') return data
  const notification = data as NotificationInput
  return { ...notification, level: notification.level ?? ('info' satisfies NotificationLevel) }
}

/**
 * Returns a `data` event with a resource, for `broadcastEvent` and `sendEvent`.
 * @example
 * ```ts
 * import { createDataEvent } from 'fastify-sse-manager'
 *
 * await app.sse.broadcastEvent(createDataEvent('profile', { name: 'Ada' }), { userIds: ['ada'] })
 * ```
 */
export function createDataEvent<R extends ResourceName> (resource: R, data: ResourcePayload<R>): EventInput {
  return { event: 'data', data: { resource, data } } as unknown as EventInput
}

/**
 * Returns a `notification` event with priority HIGH, for `broadcastEvent` and `sendEvent`. The default level is `info`.
 * @example
 * ```ts
 * import { createNotificationEvent } from 'fastify-sse-manager'
 *
 * await app.sse.broadcastEvent(createNotificationEvent({ title: 'Order 7', message: 'Shipped' }), { userIds: ['ada'] })
 * ```
 */
export function createNotificationEvent (notification: NotificationInput): EventInput {
  return { event: 'notification', data: complete('notification', notification), priority: EventPriority.HIGH } as EventInput
}

/**
 * Returns the conflation key: a newer message replaces older ones with the same result. It covers key, target and `ephemeral`,
 * because a droppable message must not replace a logged one. Returns null for a message without a key, or with a filter: two
 * functions cannot be compared.
 */
export function conflationKey ({ key, target, ephemeral }: OutgoingMessage): string | null {
  if (key === undefined || target.filter !== undefined) return null
  const text = JSON.stringify([key, ephemeral, target.userIds, target.subscriptionIds, target.clientIds, target.exceptClientIds])
  return text.length <= MAX_CONFLATION_LENGTH ? text : createHash('sha256').update(text).digest('base64')
}

/**
 * Returns the approximate memory of a stored message in bytes. The objects of each message, about 300 bytes, are not counted:
 * `history.maxEvents` bounds them.
 */
export function bytesOf (message: OutgoingMessage, conflated = conflationKey(message)): number {
  const { data, event, key, target } = message
  return bytesOfText(data) + bytesOfText(event) + bytesOfTarget(target) + (key === undefined ? 0 : bytesOfText(key)) + (conflated === null ? 0 : conflated.length)
}
