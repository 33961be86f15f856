import type { SSEConnection } from './connection.js'
import { InvalidSource } from './errors.js'
import { assertEventName, assertRetry, encodeEvent, encodeId, EventPriority, serialize } from './event.js'
import { Frame } from './frame.js'
import type { Source, SourceEvent, SourceFactory, SourceItem } from '../types/index.js'

// After this many events without waiting, the rest of the program gets a turn: a source that never waits must not stop it.
const EVENTS_PER_TURN = 256

/** Whether the first argument of `reply.sse()` is something to stream. */
export function isSource (value: unknown): value is Source | SourceFactory {
  if (typeof value === 'function') return true
  return typeof value === 'object' && value !== null && (Symbol.asyncIterator in value || Symbol.iterator in value || 'getReader' in value)
}

/**
 * Writes a source to one connection, as fast as its client reads. Returns when the source has ended or the client has
 * left; then the source is told so by `return()`, which runs its `finally`. Throws what the source throws.
 */
export async function pump (connection: SSEConnection, source: Source | SourceFactory): Promise<void> {
  const { signal, lastEventId } = connection
  const iterator = iteratorOf(typeof source === 'function' ? await source({ signal, lastEventId }) : source)
  const left = new Promise<{ done: true, value: undefined }>(resolve => {
    if (signal.aborted) resolve({ done: true, value: undefined })
    else signal.addEventListener('abort', () => resolve({ done: true, value: undefined }), { once: true })
  })
  const decoder = new TextDecoder()
  let events = 0
  try {
    while (connection.isConnected) {
      // A source that waits does not notice a client that leaves (FACTS 2.12).
      const { done, value } = await Promise.race([iterator.next(), left])
      if (done === true) break
      const frame = frameOf(value, decoder)
      if (frame === null) continue
      connection.receive(frame)
      if (connection.congested) await connection.drained()
      else if (++events % EVENTS_PER_TURN === 0) await new Promise(resolve => setImmediate(resolve))
    }
  } finally {
    cancel(iterator)
  }
}

/** Tells a source that nobody reads it any more. Never waits for it: it may be waiting itself. */
export function discard (source: Source | SourceFactory): void {
  if (typeof source !== 'function') cancel(iteratorOf(source))
}

function cancel (iterator: Iterator<unknown> | AsyncIterator<unknown>): void {
  try {
    Promise.resolve(iterator.return?.()).catch(() => {})
  } catch {
    // A synchronous `finally` that throws while nobody listens has nobody to tell.
  }
}

function iteratorOf (source: Source): Iterator<SourceItem> | AsyncIterator<SourceItem> {
  if (typeof source === 'object' && source !== null) {
    if (Symbol.asyncIterator in source) return source[Symbol.asyncIterator]() as AsyncIterator<SourceItem>
    if (Symbol.iterator in source) return source[Symbol.iterator]()
  }
  throw new InvalidSource()
}

function frameOf (item: SourceItem, decoder: InstanceType<typeof TextDecoder>): Frame | null {
  if (typeof item === 'string') return new Frame('', encodeEvent('message', serialize(item)), EventPriority.NORMAL)
  if (item instanceof Uint8Array) {
    // A character may be cut by the end of a buffer: its rest comes with the next.
    const text = decoder.decode(item, { stream: true })
    return text === '' ? null : new Frame('', encodeEvent('message', text), EventPriority.NORMAL)
  }
  if (typeof item !== 'object' || item === null || !('data' in item)) throw new InvalidSource()
  const { event = 'message', data, id, retry } = item as SourceEvent
  assertEventName(event)
  if (retry !== undefined) assertRetry(retry)
  return new Frame(id === undefined ? '' : encodeId(id), encodeEvent(event, serialize(data), retry), EventPriority.NORMAL)
}
