import { createHash } from 'node:crypto'
import { Buffer } from 'node:buffer'
import { checkBuiltIn, type NotificationLevel, type Catalogue } from './catalogue.js'
import { InvalidEvent, InvalidId, InvalidKey } from '../errors.js'
import { assertEventName, assertEventSize, assertPriority, assertRetry, EventPriority, serialize } from './event-rules.js'
import { bytesOfIds, bytesOfTarget, createTarget, type Target, type BroadcastOptions } from './target.js'
import { bytesOfText, ownText } from '../util/text.js'
import type { NotificationInput, EventInput, ResourcePayload, ResourceName } from './event-input.js'

/** A message as it is published. */
export interface OutgoingMessage {
  readonly event: string
  /** The text of the `data:` lines, already serialised: no node does it again. */
  readonly data: string
  readonly retry?: number | undefined
  readonly priority: EventPriority
  /** Conflation: an undelivered older message with the same key and target is replaced by this one. */
  readonly key?: string | undefined
  readonly target: Target
  /** Not logged: no id, no replay, may be dropped under pressure. */
  readonly ephemeral: boolean
  /**
   * Set on what nodes tell each other. `node`, ephemeral: a heartbeat, an answer; a broker that drops ephemeral messages keeps
   * these apart from the application's, and may deliver them earlier or later than those. `node`, logged: a command; its place
   * in the log counts, and `gap` says whether one was lost. A broker that drops no message may ignore it, and need not deliver it.
   */
  readonly channel?: 'node' | undefined
}

/** A message of the log. */
export interface Message extends OutgoingMessage {
  /** Place in the log, from 1, without holes within an epoch; 0 for an ephemeral message. */
  readonly seq: number
}

const MAX_KEY_LENGTH = 256
/** A longer conflation key is kept as its digest: with a target of thousands it would take as much again as the target, wherever it is looked up. */
const MAX_CONFLATION_LENGTH = 128
const KEYS = new Set(['event', 'data', 'priority', 'retry', 'key'])

/** The options that every message is held to. */
export interface MessageOptions {
  readonly events?: Catalogue<any, any> | undefined
  readonly maxEventBytes: number
}

/**
 * The message that a publish asks for: checked, serialised, and not in the log yet. All messages have the same shape, and
 * nothing in them that is not needed: the log keeps them.
 * @throws SSE_ERR_INVALID_*, SSE_ERR_UNKNOWN_EVENT, SSE_ERR_UNKNOWN_RESOURCE, SSE_ERR_EVENT_TOO_LARGE
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
  // With key and target: every node reads and keeps them.
  assertEventSize(event, text, bytesOfIds(target) + (key === undefined ? 0 : Buffer.byteLength(key)), maxEventBytes)
  return { event: ownText(event), data: text, priority, retry, key: key === undefined ? undefined : ownText(key), target, ephemeral: options.ephemeral === true || options.local === true, seq: 0 }
}

/** A misspelt name, or a target that belongs beside the event, would send something else to somebody else. */
function assertKeys (input: EventInput): void {
  if (typeof input !== 'object' || input === null) throw new InvalidEvent('must be an object { event?, data, … }')
  if ('id' in input) throw new InvalidId('belongs to the log here; own ids are for reply.sse(source)')
  for (const key of Object.keys(input)) if (!KEYS.has(key)) throw new InvalidEvent(`has an unknown property ${JSON.stringify(key.slice(0, 80))}: it has event, data, priority, retry and key; whom it is for is the second argument of a broadcast`)
}

/** A notification without a level is an `info`. */
function complete (event: string, data: unknown): unknown {
  return event === 'notification' && typeof data === 'object' && data !== null ? { level: 'info' satisfies NotificationLevel, ...data } : data
}

/** `{ event: 'data' }` for `broadcastEvent` and `sendEvent`. */
export function createDataEvent<R extends ResourceName> (resource: R, data: ResourcePayload<R>): EventInput {
  return { event: 'data', data: { resource, data } } as EventInput
}

/** `{ event: 'notification' }` with level `info` and priority HIGH, for `broadcastEvent` and `sendEvent`. */
export function createNotificationEvent (notification: NotificationInput): EventInput {
  return { event: 'notification', data: { ...notification, level: notification?.level ?? 'info' }, priority: EventPriority.HIGH } as EventInput
}

/**
 * What messages have in common of which only the newest is worth having: key and target, and whether they are logged,
 * since what may be dropped does not stand for what may not. Null for a message without a key, and for one with a filter:
 * two functions cannot be compared.
 */
export function conflationKey ({ key, target, ephemeral }: OutgoingMessage): string | null {
  if (key === undefined || target.filter !== undefined) return null
  const text = JSON.stringify([key, ephemeral, target.userIds, target.subscriptionIds, target.clientIds, target.exceptClientIds])
  return text.length <= MAX_CONFLATION_LENGTH ? text : createHash('sha256').update(text).digest('base64')
}

/** What keeping a message takes in memory, about: `maxEvents` bounds what they all take alike, some 300 bytes. */
export function bytesOf (message: OutgoingMessage, conflated = conflationKey(message)): number {
  const { data, event, key, target } = message
  return bytesOfText(data) + bytesOfText(event) + bytesOfTarget(target) + (key === undefined ? 0 : bytesOfText(key)) + (conflated === null ? 0 : conflated.length)
}
