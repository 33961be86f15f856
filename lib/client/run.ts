import { systemClock, type Clock } from '../util/clock.js'
import { BackOff } from './back-off.js'
import type { ClientGap } from './catalogue-types.js'
import type { ClientEvent, ReadEvent } from './client-event.js'
import { endError, SSEClientError } from './errors.js'
import { EventQueue } from './event-queue.js'
import { headersOf, REQUEST_OPTIONS, resolveOptions, type RequestOptions, type ResolvedRequestOptions } from './options.js'
import { resolveURL } from './page.js'
import { readStream, type Ending, type StreamSink } from './stream.js'

/** Options of `readRun()`, all optional. */
export interface ReadRunOptions extends RequestOptions {
  /** Method of the first request. Default `GET`, or `POST` with a `body`. */
  method?: string | undefined
  /** Body of the first request. A plain object or an array is sent as JSON, any other value as `fetch` sends it. Default: none. */
  body?: unknown
  /** The cursor to resume after, such as one that the page has stored. Default: none, which reads from the beginning. */
  lastEventId?: string | undefined
  /** Ends the loop with the reason of the signal. */
  signal?: AbortSignal | undefined
  /** Called when the events that follow begin again: discard what was received. Without it, the loop ends with SSE_ERR_CLIENT_GAP. */
  onGap?: ((gap: ClientGap) => void) | undefined
}

/** How a run ended. */
export interface RunEnding {
  /** `done` or `stopped`. */
  readonly status: string
  /** Why, for `stopped`. */
  readonly reason?: string
  /** Number of events of the run. */
  readonly events?: number
}

/** What `for await` reads from a run or another stream. Its return value is the end of the run; undefined for a stream that is not a run. */
export type EventReader = AsyncGenerator<ClientEvent<string, any>, RunEnding | undefined, undefined>

const OPTIONS = [...REQUEST_OPTIONS, 'method', 'body', 'lastEventId', 'signal', 'onGap']
/** Ends of a run after which nothing is missing. */
const COMPLETE = new Set(['done', 'stopped'])

/**
 * Reads a run, or another stream that ends, as a loop. After an interruption it resumes by GET after the last event: at the
 * `Content-Location` of the first response, otherwise at the same URL. The request is sent when the loop begins, and the server is read as
 * fast as the loop reads. A body is never sent twice, unless the headers contain an `Idempotency-Key`.
 * @param url URL of the run; in a page it can be relative
 * @throws in the loop: SSE_ERR_CLIENT_OPTION; SSE_ERR_CLIENT_REFUSED; SSE_ERR_CLIENT_UNKNOWN_OUTCOME when a request that is not a GET has
 * received no response; SSE_ERR_CLIENT_BROKEN when the stream broke and its events have no ids; SSE_ERR_CLIENT_RUN_NOT_DONE when the run
 * has failed, or how it ended is not known; SSE_ERR_CLIENT_GAP; SSE_ERR_CLIENT_CLOSED
 * @example
 * ```ts
 * for await (const { text } of readRun('/answers/7', { method: 'POST', body: { prompt } })) show(text)
 * ```
 */
export async function * readRun (url: string | URL, options: ReadRunOptions = {}): EventReader {
  const request = new RunRequest(resolveURL(url), options, resolveOptions(options, OPTIONS))
  return yield * eventsOf(reading => request.read(reading), options)
}

/**
 * Reads the response to a `fetch` as a loop, until it ends. It does not reconnect.
 * @throws in the loop: as `readRun()`; SSE_ERR_CLIENT_BROKEN when the stream breaks
 * @example
 * ```ts
 * for await (const { event, data } of readEvents(fetch('/import', { method: 'POST', body }))) console.log(event, data)
 * ```
 */
export async function * readEvents (response: Response | Promise<Response>): EventReader {
  const received = await response
  return yield * eventsOf(async reading => {
    const ending = await reading.attempt(async () => received, systemClock, Infinity)
    if (!reading.settles(ending)) throw endError('SSE_ERR_CLIENT_BROKEN', ending)
  }, {})
}

/** Yields what is read. Only here the events of a run and what they mean for the loop meet, in their order. */
async function * eventsOf (read: (reading: RunReading) => Promise<void>, { signal, onGap }: Pick<ReadRunOptions, 'signal' | 'onGap'>): EventReader {
  signal?.throwIfAborted()
  const reading = new RunReading()
  const abort = (): void => reading.queue.end(signal!.reason)
  signal?.addEventListener('abort', abort)
  read(reading).then(() => reading.queue.end(), (error: unknown) => reading.queue.end(error))
  try {
    for await (const event of reading.queue) {
      if (event.event !== 'sse:gap') yield event
      else if (onGap === undefined) throw new SSEClientError('SSE_ERR_CLIENT_GAP', event.data.reason, event.data)
      else onGap(event.data)
    }
    return reading.end
  } finally {
    signal?.removeEventListener('abort', abort)
  }
}

/** What has been read of a run, over all attempts. */
class RunReading {
  readonly queue: EventQueue<ReadEvent>
  lastEventId = ''
  end: RunEnding | undefined
  /** Whether events were received. */
  hasEvents = false
  /** Whether the server says by control events how a stream ends. Without them, only the end of the response says it. */
  #hasControl = false
  readonly #controller = new AbortController()
  readonly #sink: Omit<StreamSink, 'retry'>

  constructor () {
    this.queue = new EventQueue(Infinity, () => new SSEClientError('SSE_ERR_CLIENT_OVERFLOW'), () => this.#controller.abort())
    this.#sink = {
      lastEventId: id => { this.lastEventId = id },
      event: event => this.#take(event),
      read: () => this.queue.drained()
    }
  }

  get signal (): AbortSignal {
    return this.#controller.signal
  }

  attempt (send: (signal: AbortSignal) => Promise<Response | null>, clock: Clock, timeoutMs: number, { retry, ...sink }: Pick<Partial<StreamSink>, 'retry' | 'response'> = {}): Promise<Ending> {
    const hear = (ms: number): void => {
      this.#hasControl = true
      retry?.(ms)
    }
    return readStream({ send, sink: { ...this.#sink, ...sink, retry: hear }, signal: this.signal, clock, timeoutMs })
  }

  #take (event: ReadEvent): void {
    if (event.event === 'sse:end') this.end = event.data
    else if (event.event === 'sse:gap' || !event.event.startsWith('sse:')) {
      this.hasEvents = true
      this.queue.push(event)
    }
  }

  /** Returns whether everything is read; false after an interruption. @throws if it never will be */
  settles (ending: Ending): boolean {
    const { isFinal, reason } = ending
    if (this.signal.aborted) return true
    if (this.end !== undefined) {
      if (COMPLETE.has(this.end.status)) return true
      throw new SSEClientError('SSE_ERR_CLIENT_RUN_NOT_DONE', this.end.status, { reason: this.end.status })
    }
    if (reason === 'end' && !this.#hasControl) return true
    if (!isFinal) return false
    if (reason === 'source-end' || reason === 'no-content') return true
    throw endError('SSE_ERR_CLIENT_CLOSED', ending)
  }
}

/** The requests of a run: the first one, and those that resume. */
class RunRequest {
  readonly #options: ResolvedRequestOptions
  readonly #backOff: BackOff
  readonly #lastEventId: string
  readonly #body: unknown
  #method: string
  #url: URL

  constructor (url: URL, { method, body, lastEventId = '' }: ReadRunOptions, options: ResolvedRequestOptions) {
    this.#url = url
    this.#options = options
    this.#backOff = new BackOff(options.maxRetryMs)
    this.#body = body
    this.#method = method?.toUpperCase() ?? (body === undefined ? 'GET' : 'POST')
    this.#lastEventId = lastEventId
  }

  async read (reading: RunReading): Promise<void> {
    const { clock, timeoutMs } = this.#options
    reading.lastEventId = this.#lastEventId
    for (;;) {
      let isRepeatable = this.#method === 'GET'
      let isSent = false
      const ending = await reading.attempt(async signal => {
        const headers = await headersOf(this.#options, signal, reading.lastEventId)
        if (headers === null) return null
        isRepeatable ||= 'idempotency-key' in headers
        isSent = true
        return await this.#send(headers, signal)
      }, clock, timeoutMs, {
        retry: ms => { this.#backOff.retryMs = ms },
        response: response => {
          // The run has been started. From now on it is only read.
          this.#url = new URL(response.headers.get('content-location') ?? '', response.url || this.#url)
          this.#method = 'GET'
          isRepeatable = true
        }
      })
      if (reading.settles(ending)) return
      if (!isRepeatable && isSent) throw endError('SSE_ERR_CLIENT_UNKNOWN_OUTCOME', ending)
      if (reading.hasEvents && reading.lastEventId === '') throw endError('SSE_ERR_CLIENT_BROKEN', ending)
      await sleep(this.#backOff.next(ending.openMs, ending.retryAfterMs), clock, reading.signal)
      if (reading.signal.aborted) return
    }
  }

  #send (headers: Record<string, string>, signal: AbortSignal): Promise<Response> {
    const { credentials, fetch } = this.#options
    const method = this.#method
    const init = { method, headers, credentials, signal, cache: 'no-store' }
    if (method === 'GET' || this.#body === undefined) return fetch(this.#url, init as RequestInit)
    if (!isPlain(this.#body)) return fetch(this.#url, { ...init, body: this.#body } as RequestInit)
    return fetch(this.#url, { ...init, headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(this.#body) } as RequestInit)
  }
}

/** Whether a body is sent as JSON. */
function isPlain (body: unknown): boolean {
  return Array.isArray(body) || (typeof body === 'object' && body !== null && Object.getPrototypeOf(body) === Object.prototype)
}

/** Resolves after the time, or when the signal is aborted. */
function sleep (ms: number, clock: Clock, signal: AbortSignal): Promise<void> {
  return new Promise(resolve => {
    const timer = clock.after(ms, resolve)
    signal.addEventListener('abort', () => {
      clock.cancel(timer)
      resolve()
    }, { once: true })
  })
}
