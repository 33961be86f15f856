import type { Message, OutgoingMessage } from './broker.js'
import { checkBuiltIn, type NotificationLevel } from './catalogue.js'
import { EventTooLarge, InvalidEvent, InvalidId, InvalidKey } from './errors.js'
import { assertEventName, assertPriority, assertRetry, EventPriority, serialize } from './event.js'
import type { ResolvedOptions } from './options.js'
import type { EventInput, NotificationInput, ResourceName, ResourcePayload } from '../types/index.js'

const MAX_KEY_LENGTH = 256
const KEYS = new Set(['event', 'data', 'priority', 'retry', 'key'])

/** The part of a message that its event decides. */
export type EventPart = Pick<OutgoingMessage, 'event' | 'data' | 'priority' | 'retry' | 'key'>

/**
 * An event as it will be encoded: checked and serialised.
 * @throws SSE_ERR_INVALID_*, SSE_ERR_UNKNOWN_EVENT, SSE_ERR_UNKNOWN_RESOURCE, SSE_ERR_EVENT_TOO_LARGE
 */
export function composeEvent (input: EventInput, { events, maxEventBytes }: Pick<ResolvedOptions, 'events' | 'maxEventBytes'>): EventPart {
  assertKeys(input)
  const { event = 'message', data, priority = EventPriority.NORMAL, retry, key } = input
  assertEventName(event)
  assertPriority(priority)
  if (retry !== undefined) assertRetry(retry)
  if (key !== undefined && (typeof key !== 'string' || key.length === 0 || key.length > MAX_KEY_LENGTH)) throw new InvalidKey(MAX_KEY_LENGTH)
  const complete = event === 'notification' && typeof data === 'object' && data !== null ? { level: 'info' satisfies NotificationLevel, ...data } : data
  if (events === undefined) checkBuiltIn(event, complete)
  else events.check(event, complete)
  const text = serialize(complete)
  const bytes = Buffer.byteLength(text)
  if (bytes > maxEventBytes) throw new EventTooLarge(bytes, maxEventBytes)
  return { event, data: text, priority, ...(retry !== undefined && { retry }), ...(key !== undefined && { key }) }
}

/** A misspelt name, or a target that belongs beside the event, would send something else to somebody else. */
function assertKeys (input: EventInput): void {
  if (typeof input !== 'object' || input === null) throw new InvalidEvent('must be an object { event?, data, … }')
  if ('id' in input) throw new InvalidId('belongs to the log here; own ids are for reply.sse(source)')
  for (const key of Object.keys(input)) if (!KEYS.has(key)) throw new InvalidEvent(`has an unknown property ${JSON.stringify(key.slice(0, 80))}: it has event, data, priority, retry and key; whom it is for is the second argument of a broadcast`)
}

/** A message for one connection only, past the log. */
export function directMessage (part: EventPart, clientId: string): Message {
  return { ...part, target: { clientIds: [clientId] }, ephemeral: true, nonce: '', seq: 0 }
}

/** `{ event: 'data' }` for `broadcastEvent` and `sendEvent`. */
export function createDataEvent<R extends ResourceName> (resource: R, data: ResourcePayload<R>): EventInput {
  return { event: 'data', data: { resource, data } } as EventInput
}

/** `{ event: 'notification' }` with level `info` and priority HIGH, for `broadcastEvent` and `sendEvent`. */
export function createNotificationEvent (notification: NotificationInput): EventInput {
  return { event: 'notification', data: { ...notification, level: notification.level ?? 'info' }, priority: EventPriority.HIGH } as EventInput
}
