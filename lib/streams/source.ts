import type { Readable } from 'node:stream'
import type { SSEConnection } from '../connections/connection.js'
import { InvalidSource } from '../errors.js'
import { assertEventName, assertRetry, EventPriority, serialize } from '../events/event-rules.js'
import { kindOf, quote } from '../util/quote.js'
import { encodeId, encodeEvent } from '../wire/event-stream.js'
import { Frame } from '../delivery/frame.js'
import type { ConnectOptions } from '../access/connect-options.js'

/** Options of `reply.sse(source, options)`. */
export type SourceOptions = Omit<ConnectOptions, 'subscriptions'>

/** An event of a source. */
export interface SourceEvent {
  /** Name of the event. Default: `message`, which is sent without a name. */
  event?: string
  /** The data: a string is sent as it is, any other value as JSON. */
  data: unknown
  /** Id of the event, chosen by the application: printable ASCII, up to 1,024 characters. A client that reconnects sends the last one. */
  id?: string
  /** Reconnection time for the client in milliseconds, 100 to 3,600,000. Absent: unchanged. */
  retry?: number
}

/** An item of a source: the data of an event without a name, as a string or as UTF-8 bytes, or an event. */
export type SourceItem = string | Uint8Array | SourceEvent

/** A source of `reply.sse(source)`: an iterable, an async iterable, a Node.js stream or a web stream. */
export type Source = Iterable<SourceItem> | AsyncIterable<SourceItem> | ReadableStream<SourceItem>

/**
 * A function that returns a source, or a promise of it. It is called once for each stream, and not for HEAD requests.
 * @example
 * ```ts
 * import type { SourceFactory } from 'fastify-sse-manager'
 *
 * const count: SourceFactory = async function * ({ lastEventId }) {
 *   for (let n = Number(lastEventId ?? 0) + 1; n <= 100; n++) yield { id: String(n), data: n }
 * }
 * app.get('/count', { sse: true }, (request, reply) => reply.sse(count))
 * ```
 */
export type SourceFactory = (context: {
  /** Aborts when the stream ends. */
  signal: AbortSignal;
  /** The last id that a reconnecting client received; null if there is none. */
  lastEventId: string | null
}) => Source | Promise<Source>

// After this many events, the source waits for one turn of the event loop. A source that never waits would block the process.
const EVENTS_PER_TURN = 256

/** Returns whether the first argument of `reply.sse()` is a source. */
export function isSource (value: unknown): value is Source | SourceFactory {
  if (typeof value === 'function') return true
  return typeof value === 'object' && value !== null && (Symbol.asyncIterator in value || Symbol.iterator in value || 'getReader' in value)
}

/** A source that is being read. */
interface Reading {
  next (): Result | Promise<Result>
  /** Stops the source, also while `next` is pending. */
  cancel (): unknown
}
type Result = { done?: boolean | undefined, value?: unknown }

/**
 * Writes a source to one connection, as fast as the client reads. Resolves when the source or the stream has ended. The source is then
 * stopped, so that its `finally` runs. Rejects with the error of the source.
 * @throws SSE_ERR_INVALID_SOURCE, SSE_ERR_INVALID_EVENT_NAME, SSE_ERR_INVALID_ID, SSE_ERR_INVALID_RETRY, SSE_ERR_INVALID_DATA
 */
export async function pump (connection: SSEConnection, source: Source | SourceFactory): Promise<void> {
  const { signal, lastEventId } = connection
  const departure = new Departure(signal)
  const made = typeof source === 'function' ? source({ signal, lastEventId }) : source
  const given = await departure.or(made)
  if (given === GONE) {
    Promise.resolve(made).then(discard, () => {})
    return
  }
  hold(given)
  const reading = read(given)
  const decoder = new TextDecoder()
  let events = 0
  try {
    while (connection.isConnected) {
      const result = await departure.or(reading.next())
      if (result === GONE) break
      const frame = result.done === true ? frameOfText(decoder.decode()) : frameOf(result.value as SourceItem, decoder)
      if (frame !== null) {
        while (connection.crowdedFor(frame)) await connection.drained()
        connection.receive(frame)
      }
      if (result.done === true) break
      if (++events % EVENTS_PER_TURN === 0) await new Promise(resolve => setImmediate(resolve))
    }
  } finally {
    cancel(reading)
  }
}

/** Adds an error listener to a Node.js stream. Without it, an error before or after the read would crash the process. */
export function hold (source: Source | SourceFactory): void {
  if (isNodeStream(source)) source.on('error', () => {})
}

/** Stops a source that was never read. */
export function discard (source: Source | SourceFactory): void {
  if (typeof source === 'function') return
  hold(source)
  try {
    cancel(read(source))
  } catch {
    // The value is no source, or another reader has locked it. There is nothing to stop.
  }
}

/** Stops a source without waiting for it: its pending operation may never complete. */
function cancel (reading: Reading): void {
  try {
    Promise.resolve(reading.cancel()).catch(() => {})
  } catch {
    // Errors of a synchronous `finally` are ignored: the stream has ended.
  }
}

function read (source: Source): Reading {
  if (typeof source === 'object' && source !== null) {
    // Streams are stopped themselves: `return()` of their iterators would first wait for the pending read.
    if ('getReader' in source) {
      const reader = source.getReader()
      return { next: () => reader.read(), cancel: () => reader.cancel() }
    }
    const iterator = Symbol.asyncIterator in source ? source[Symbol.asyncIterator]() : Symbol.iterator in source ? source[Symbol.iterator]() : null
    if (iterator !== null) return { next: () => iterator.next(), cancel: () => isNodeStream(source) ? source.destroy() : iterator.return?.() }
  }
  throw new InvalidSource('must be an iterable, an async iterable or a readable stream')
}

function isNodeStream (source: unknown): source is Readable {
  return typeof source === 'object' && source !== null && 'destroy' in source && 'on' in source && typeof source.destroy === 'function' && typeof source.on === 'function'
}

const GONE = Symbol('gone')

/**
 * Waits for a source and for the end of the stream at the same time. `Promise.race` would leak memory: it adds a reaction to the
 * longer-lived promise for each item.
 */
class Departure {
  #left = false
  #leave: ((gone: typeof GONE) => void) | null = null

  constructor (signal: AbortSignal) {
    const onAbort = () => {
      this.#left = true
      this.#leave?.(GONE)
    }
    if (signal.aborted) onAbort()
    else signal.addEventListener('abort', onAbort, { once: true })
  }

  or<T> (value: T | PromiseLike<T>): Promise<T | typeof GONE> {
    return new Promise((resolve, reject) => {
      Promise.resolve(value).then(resolve, reject)
      if (this.#left) resolve(GONE)
      else this.#leave = resolve
    })
  }
}

function frameOfText (text: string): Frame | null {
  return text === '' ? null : new Frame('', encodeEvent('message', text), EventPriority.NORMAL)
}

const EVENT_KEYS = new Set(['event', 'data', 'id', 'retry'])
const YIELDS = 'it yields strings, bytes or { event?, data, id?, retry? }'

function frameOf (item: SourceItem, decoder: InstanceType<typeof TextDecoder>): Frame | null {
  if (typeof item === 'string') return new Frame('', encodeEvent('message', serialize(item)), EventPriority.NORMAL)
  if (item instanceof Uint8Array) {
    // A character can be split between two buffers, so the decoder keeps its first part.
    return frameOfText(decoder.decode(item, { stream: true }))
  }
  if (typeof item !== 'object' || item === null || !('data' in item)) throw new InvalidSource(`yielded ${kindOf(item)}${kindOf(item) === 'an object' ? ' without data' : ''}: ${YIELDS}`)
  // With a misspelt name, the event would lack its name, id or reconnection time.
  for (const key of Object.keys(item)) if (!EVENT_KEYS.has(key)) throw new InvalidSource(`yielded an object with an unknown property ${quote(key)}: ${YIELDS}`)
  const { event = 'message', data, id, retry } = item as SourceEvent
  assertEventName(event)
  if (retry !== undefined) assertRetry(retry)
  return new Frame(id === undefined ? '' : encodeId(id), encodeEvent(event, serialize(data), retry), EventPriority.NORMAL)
}
