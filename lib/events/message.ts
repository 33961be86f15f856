import { Buffer } from 'node:buffer'
import type { Message, Target } from '../log/broker.js'
import { checkBuiltIn, type NotificationLevel } from './catalogue.js'
import { EventTooLarge, InvalidEvent, InvalidId, InvalidKey } from '../errors.js'
import { assertEventName, assertPriority, assertRetry, EventPriority, serialize } from './event.js'
import type { ResolvedOptions } from '../options.js'
import { bytesOfIds } from '../log/ring.js'
import { createTarget } from './target.js'
import type { BroadcastOptions, EventInput, NotificationInput, ResourceName, ResourcePayload } from '../../types/index.js'

const MAX_KEY_LENGTH = 256
const KEYS = new Set(['event', 'data', 'priority', 'retry', 'key'])
const MAX_BYTES_PER_CHARACTER = 3

/**
 * The message that a publish asks for: checked, serialised, and not in the log yet. All messages have the same shape, and
 * nothing in them that is not needed: the log keeps them.
 * @throws SSE_ERR_INVALID_*, SSE_ERR_UNKNOWN_EVENT, SSE_ERR_UNKNOWN_RESOURCE, SSE_ERR_EVENT_TOO_LARGE
 */
export function composeMessage (input: EventInput, options: BroadcastOptions, { events, maxEventBytes }: Pick<ResolvedOptions, 'events' | 'maxEventBytes'>): Message {
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
  assertSize(text, target, maxEventBytes)
  return { event, data: text, priority, retry, key, target, ephemeral: options.ephemeral === true || options.local === true, seq: 0 }
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

/** With the target: every node reads and keeps it, as long as it may be. */
function assertSize (text: string, target: Target, maxEventBytes: number): void {
  const idBytes = bytesOfIds(target)
  if (text.length * MAX_BYTES_PER_CHARACTER + idBytes <= maxEventBytes) return
  const bytes = Buffer.byteLength(text) + idBytes
  if (bytes > maxEventBytes) throw new EventTooLarge(bytes, maxEventBytes)
}

/** `{ event: 'data' }` for `broadcastEvent` and `sendEvent`. */
export function createDataEvent<R extends ResourceName> (resource: R, data: ResourcePayload<R>): EventInput {
  return { event: 'data', data: { resource, data } } as EventInput
}

/** `{ event: 'notification' }` with level `info` and priority HIGH, for `broadcastEvent` and `sendEvent`. */
export function createNotificationEvent (notification: NotificationInput): EventInput {
  return { event: 'notification', data: { ...notification, level: notification.level ?? 'info' }, priority: EventPriority.HIGH } as EventInput
}
