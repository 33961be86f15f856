import type { Readable } from 'node:stream'
import type { SSEConnection } from '../connections/connection.js'
import { InvalidSource } from '../errors.js'
import { assertEventName, assertRetry, EventPriority, serialize } from '../events/event-rules.js'
import { encodeId, encodeEvent } from '../wire/event-stream.js'
import { Frame } from '../delivery/frame.js'
import type { ConnectOptions } from '../access/connect-options.js'

export type SourceOptions = Omit<ConnectOptions, 'subscriptions'>

/** An event of a stream of its own; `id` is the application's. Strings go as they are, anything else as JSON. */
export interface SourceEvent {
  event?: string
  data: unknown
  id?: string
  retry?: number
}

export type SourceItem = string | Uint8Array | SourceEvent

/** An iterable or async iterable, which Node and web streams are; or a function that makes one. */
export type Source = Iterable<SourceItem> | AsyncIterable<SourceItem> | ReadableStream<SourceItem>

export type SourceFactory = (context: { signal: AbortSignal; lastEventId: string | null }) => Source | Promise<Source>

// After this many events without waiting, the rest of the program gets a turn: a source that never waits must not stop it.
const EVENTS_PER_TURN = 256

/** Whether the first argument of `reply.sse()` is something to stream. */
export function isSource (value: unknown): value is Source | SourceFactory {
  if (typeof value === 'function') return true
  return typeof value === 'object' && value !== null && (Symbol.asyncIterator in value || Symbol.iterator in value || 'getReader' in value)
}

/** A source being read. */
interface Reading {
  next (): Result | Promise<Result>
  /** Tells it that nobody reads it any more, also while `next` is waiting. */
  cancel (): unknown
}
type Result = { done?: boolean | undefined, value?: unknown }

/**
 * Writes a source to one connection, as fast as its client reads. Returns when the source has ended or the client has
 * left; then the source is told so, which runs its `finally`. Throws what the source throws.
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

/** Keeps a Node stream that fails before or after it is read from ending the process. */
export function hold (source: Source | SourceFactory): void {
  if (isNodeStream(source)) source.on('error', () => {})
}

/** Tells a source that was never read that it will not be. */
export function discard (source: Source | SourceFactory): void {
  if (typeof source === 'function') return
  hold(source)
  try {
    cancel(read(source))
  } catch {
    // No source at all, or locked by somebody else: not ours to end.
  }
}

/** Never waits for the source: it may be waiting itself. */
function cancel (reading: Reading): void {
  try {
    Promise.resolve(reading.cancel()).catch(() => {})
  } catch {
    // Errors of a synchronous `finally` are ignored: the stream has ended.
  }
}

function read (source: Source): Reading {
  if (typeof source === 'object' && source !== null) {
    // The iterators of streams, told to return, first wait for what they are waiting for: the streams themselves do not.
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
 * The client's leaving, to be waited for beside a source that does not notice it. Not `Promise.race`: that
 * leaves a reaction on the longer lived promise for each item of the stream.
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
    // A character may be cut by the end of a buffer: its rest comes with the next.
    return frameOfText(decoder.decode(item, { stream: true }))
  }
  if (typeof item !== 'object' || item === null || !('data' in item)) throw new InvalidSource(`yielded ${item === null ? 'null' : typeof item === 'object' ? 'an object without data' : item === undefined ? 'undefined' : `a ${typeof item}`}: ${YIELDS}`)
  // A misspelt name would send something else.
  for (const key of Object.keys(item)) if (!EVENT_KEYS.has(key)) throw new InvalidSource(`yielded an object with an unknown property ${JSON.stringify(key.slice(0, 80))}: ${YIELDS}`)
  const { event = 'message', data, id, retry } = item as SourceEvent
  assertEventName(event)
  if (retry !== undefined) assertRetry(retry)
  return new Frame(id === undefined ? '' : encodeId(id), encodeEvent(event, serialize(data), retry), EventPriority.NORMAL)
}
