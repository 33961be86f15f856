import type { Clock } from '../util/clock.js'
import { ReadEvent } from './client-event.js'
import { EventParser } from './event-parser.js'
import { Watchdog } from './watchdog.js'

/** How an attempt ended. */
export interface Ending {
  /** Whether the client must not try again. */
  readonly isFinal: boolean
  /** A close reason of the server, or: `network`, `timeout`, `end` (the response is complete), `refused`, `no-content`, `no-credentials`, `not-a-stream`. */
  readonly reason: string
  /** Status of the response, if it was not a stream. */
  readonly status?: number | undefined
  /** Error code of the server. */
  readonly code?: string | undefined
  /** What the server asked for in `Retry-After`, in milliseconds. */
  readonly retryAfterMs?: number | undefined
  /** How long the stream was open, in milliseconds; 0 if it was not. */
  readonly openMs: number
}

/** Receives what is read. Nothing is called after the signal is aborted. */
export interface StreamSink {
  /** The response is a stream. */
  response? (response: Response): void
  /** The server serves the stream: the first comment, id or event has arrived. */
  open? (): void
  event (event: ReadEvent): void
  lastEventId (id: string): void
  retry (ms: number): void
  /** Called after each part that was read. The next part is read when the promise resolves. */
  read? (): Promise<void> | undefined
}

/** A request, and how it is watched. */
export interface StreamRequest {
  /** Sends the request. Resolves with null if there are no credentials. */
  send (signal: AbortSignal): Promise<Response | null>
  readonly sink: StreamSink
  /** Ends the attempt. */
  readonly signal: AbortSignal
  readonly clock: Clock
  /** Time to the first byte of the body, in milliseconds; Infinity for no limit. Afterwards the interval of the opening comment counts. */
  readonly timeoutMs: number
  /** Receives the watchdog, which is called when the page is shown again. */
  watched? (watchdog: Watchdog): void
}

/** The opening comment of a server of this package, with its interval of keep-alives in milliseconds. */
export const OPENING = /^stream(?: keep-alive=(\d+))?$/
/** Statuses below 500 after which a later attempt can succeed. */
const TEMPORARY = new Set([408, 425, 429])

/** Sends a request, and reads the stream until it ends. Never rejects. */
export async function readStream ({ send, sink, signal, clock, timeoutMs, watched }: StreamRequest): Promise<Ending> {
  const controller = new AbortController()
  const abort = (): void => controller.abort()
  let isSilent = false
  let onSilence!: (ending: null) => void
  const silence = new Promise<null>(resolve => { onSilence = resolve })
  const watchdog = new Watchdog(clock, timeoutMs, () => {
    isSilent = true
    abort()
    onSilence(null)
  })
  watched?.(watchdog)
  signal.addEventListener('abort', abort)
  const reading = new Reading(sink, signal, clock, watchdog)
  try {
    // A `headers()` or `ticket()` of the application may never settle.
    const response = await Promise.race([send(controller.signal), silence])
    if (isSilent) return reading.ended('timeout')
    if (response === null) return { isFinal: true, reason: 'no-credentials', openMs: 0 }
    const refusal = await refusalOf(response, clock)
    if (refusal !== null) return refusal
    sink.response?.(response)
    return await reading.read(response.body!)
  } catch {
    return reading.ended(isSilent ? 'timeout' : 'network')
  } finally {
    watchdog.stop()
    signal.removeEventListener('abort', abort)
    abort()
  }
}

/** Returns how a response ends the attempt that is not a stream; null for a stream. */
async function refusalOf (response: Response, clock: Clock): Promise<Ending | null> {
  const { status, headers } = response
  const type = headers.get('content-type') ?? ''
  if (status === 200 && /^text\/event-stream\b/i.test(type)) return null
  if (status === 204) return { isFinal: true, reason: 'no-content', status, openMs: 0 }
  if (response.ok) return { isFinal: true, reason: 'not-a-stream', status, openMs: 0 }
  const body: unknown = /\bjson\b/.test(type) ? await response.json().catch(() => null) : null
  return {
    isFinal: status < 500 && !TEMPORARY.has(status),
    reason: 'refused',
    status,
    code: codeOf(body),
    retryAfterMs: retryAfterMs(headers.get('retry-after'), clock),
    openMs: 0
  }
}

/** Returns the error code that the server has sent. */
function codeOf (data: unknown): string | undefined {
  const code = (data as { code?: unknown } | null)?.code
  return typeof code === 'string' ? code : undefined
}

/** Seconds, or a date (RFC 9110, 10.2.3). */
function retryAfterMs (value: string | null, clock: Clock): number | undefined {
  if (value === null) return undefined
  const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - clock.wall()
  return ms > 0 ? ms : undefined
}

/** The reading of one response. */
class Reading {
  readonly #sink: StreamSink
  readonly #signal: AbortSignal
  readonly #clock: Clock
  readonly #watchdog: Watchdog
  readonly #parser: EventParser
  #openedAt: number | null = null
  #ending: Ending | null = null
  /** The `sse:error` of a refusal that came as a short stream. */
  #refused: ReadEvent | null = null

  constructor (sink: StreamSink, signal: AbortSignal, clock: Clock, watchdog: Watchdog) {
    this.#sink = sink
    this.#signal = signal
    this.#clock = clock
    this.#watchdog = watchdog
    this.#parser = new EventParser({
      comment: text => { if (this.#isLive) this.#comment(text) },
      retry: ms => { if (this.#isLive) sink.retry(ms) },
      lastEventId: id => {
        if (!this.#isLive) return
        this.#open()
        sink.lastEventId(id)
      },
      event: event => { if (this.#isLive) this.#event(new ReadEvent(event)) }
    })
  }

  /** Whether the rest of what was received still counts: a listener may have closed the client, whose cursor then stays. */
  get #isLive (): boolean {
    return this.#ending === null && !this.#signal.aborted
  }

  async read (body: ReadableStream<Uint8Array>): Promise<Ending> {
    const reader = body.getReader()
    // The parser removes the byte order mark.
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
    while (this.#isLive) {
      const { done, value } = await reader.read()
      if (done) return this.ended('end')
      this.#watchdog.heard()
      this.#parser.push(decoder.decode(value, { stream: true }))
      if (this.#parser.isOverlong) break
      const pause = this.#sink.read?.()
      if (pause === undefined) continue
      // A loop that reads slowly is not a silent server.
      this.#watchdog.stop()
      await pause
      this.#watchdog.start()
    }
    return this.#ending ?? this.ended('network')
  }

  ended (reason: string): Ending {
    if (this.#refused !== null) return { isFinal: false, reason: 'refused', code: codeOf(this.#refused.data), openMs: 0 }
    return { isFinal: false, reason, openMs: this.#openMs }
  }

  get #openMs (): number {
    return this.#openedAt === null ? 0 : this.#clock.monotonic() - this.#openedAt
  }

  #open (keepAliveMs = Infinity): void {
    if (this.#openedAt !== null) return
    this.#openedAt = this.#clock.monotonic()
    this.#watchdog.limit(keepAliveMs * 2)
    this.#sink.open?.()
  }

  #comment (text: string): void {
    const [, interval] = OPENING.exec(text) ?? []
    this.#open(interval === undefined ? Infinity : Number(interval))
  }

  #event (event: ReadEvent): void {
    if (event.event === 'sse:close') this.#ending = { isFinal: event.data?.reconnect === false, reason: String(event.data?.reason), openMs: this.#openMs }
    else if (event.event === 'sse:error' && this.#openedAt === null) this.#refused = event
    else {
      this.#open()
      this.#sink.event(event)
    }
  }
}
