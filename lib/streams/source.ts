import type { Readable } from 'node:stream'
import { InvalidSource } from '../errors.js'
import { assertEventName, EventPriority, textOfData } from '../events/event-rules.js'
import { kindOf, quote } from '../util/quote.js'
import { encodeId, encodeEvent } from '../wire/event-stream.js'
import { Frame, sizeOfEvent } from '../delivery/frame.js'
import type { ConnectOptions } from '../access/connect-options.js'
import type { ItemDecoder } from './item-decoder.js'

/** Options of `reply.sse(source, options)`. */
export interface SourceOptions extends Omit<ConnectOptions, 'subscriptions' | 'snapshot'> {
  /**
   * Whether the stream has control events and a reconnection time. `false`: only comments, ids and the items themselves are written, as the
   * transport of the AI SDK requires. A stream that ends before its source is then cut, so that the client does not take it for
   * complete. Default `true`.
   */
  control?: boolean | undefined
}

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

/** An object with a `type`, such as a part of `toUIMessageStream()` of the AI SDK. It is sent as JSON, as the data of an event without a name. */
export interface SourcePart {
  /** What the object is. */
  type: string
}

/** An item of a source: the data of an event without a name, as a string, as UTF-8 bytes or as an object with a `type`, or an event. */
export type SourceItem = string | Uint8Array | SourceEvent | SourcePart

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

/** Returns whether the first argument of `reply.sse()` is a source. */
export function isSource (value: unknown): value is Source | SourceFactory {
  if (typeof value === 'function') return true
  return typeof value === 'object' && value !== null && (Symbol.asyncIterator in value || Symbol.iterator in value || 'getReader' in value)
}

/** A source that is being read. */
export interface Reading {
  next (): Result | PromiseLike<Result>
  /** Stops the source, also while `next` is pending. */
  cancel (): unknown
}
/** What a source gives. */
export type Result = { done?: boolean | undefined, value?: unknown }

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
export function cancel (reading: Reading): void {
  try {
    Promise.resolve(reading.cancel()).catch(() => {})
  } catch {
    // Errors of a synchronous `finally` are ignored: the stream has ended.
  }
}

export function read (source: Source): Reading {
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

/** Makes a frame of decoded text; null for none. */
export function frameOfText (text: string | null): Frame | null {
  return text === null ? null : frameOfEvent('message', textOfData(text))
}

function frameOfEvent (event: string, data: string, id?: string, retry?: number): Frame {
  const text = encodeEvent(event, data, retry)
  return new Frame(id === undefined ? '' : encodeId(id), text, EventPriority.NORMAL, 0, null, null, sizeOfEvent(text, event, data))
}

const EVENT_KEYS: ReadonlySet<string> = new Set(['event', 'data', 'id', 'retry'])
const YIELDS = 'it yields strings, bytes, { event?, data, id?, retry? } or objects with a type'

/** Makes a frame of an item. Returns null for text of which no character is complete, which the decoder keeps. */
export function frameOf (item: SourceItem, decoder: ItemDecoder): Frame | null {
  if (typeof item === 'string' || item instanceof Uint8Array) return frameOfText(decoder.decode(item))
  const { event = 'message', data, id, retry } = eventOf(item, EVENT_KEYS, YIELDS)
  assertEventName(event)
  return frameOfEvent(event, textOfData(data), id, retry)
}

/**
 * Returns the event of an item that is neither a string nor bytes.
 * @param keys the properties that an event can have
 * @param yields what a source yields, for the error
 * @throws SSE_ERR_INVALID_SOURCE
 */
export function eventOf (item: unknown, keys: ReadonlySet<string>, yields: string): SourceEvent {
  if (typeof item !== 'object' || item === null) throw new InvalidSource(`yielded ${kindOf(item)}: ${yields}`)
  if ('type' in item && typeof item.type === 'string' && !('event' in item)) return { data: item }
  if (!('data' in item)) throw new InvalidSource(`yielded ${kindOf(item)}${kindOf(item) === 'an object' ? ' without data' : ''}: ${yields}`)
  // With a misspelt name, the event would lack its name, id or reconnection time.
  for (const key of Object.keys(item)) if (!keys.has(key)) throw new InvalidSource(`yielded an object with an unknown property ${quote(key)}: ${yields}`)
  return item as SourceEvent
}
