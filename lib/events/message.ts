import { Buffer } from 'node:buffer'
import type { Message } from '../log/broker.js'
import { checkBuiltIn, type NotificationLevel } from './catalogue.js'
import { InvalidEvent, InvalidId, InvalidKey } from '../errors.js'
import { assertEventName, assertEventSize, assertPriority, assertRetry, EventPriority, serialize } from './event.js'
import type { ResolvedOptions } from '../options.js'
import { bytesOfIds, createTarget } from './target.js'
import { ownText } from '../util/text.js'
import type { BroadcastOptions, EventInput, NotificationInput, ResourceName, ResourcePayload } from '../../types/index.js'

const MAX_KEY_LENGTH = 256
const KEYS = new Set(['event', 'data', 'priority', 'retry', 'key'])

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
  return { event: 'notification', data: { ...notification, level: notification.level ?? 'info' }, priority: EventPriority.HIGH } as EventInput
}
