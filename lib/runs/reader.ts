import { setImmediate as endOfTurn } from 'node:timers/promises'
import type { SSEConnection } from '../connections/connection.js'
import { Frame } from '../delivery/frame.js'
import { EventPriority } from '../events/event-rules.js'
import type { GapReason } from '../log/broker.js'
import type { RunState, RunStatus } from '../log/run-store.js'
import type { Clock } from '../util/clock.js'
import { send } from '../streams/send.js'
import { encodeControl, encodeId, encodeIdBlock } from '../wire/event-stream.js'
import type { Telemetry } from '../diagnostics/telemetry.js'
import type { FeedPage, FeedReader, RunFeed } from './feed.js'
import { formatRunId, type RunStart } from './run-position.js'

/** Pause after a failed read. */
const RETRY_MS = 500
/** Time after which a stream whose run cannot be read is ended. Its client reconnects, perhaps to another node. */
const UNREADABLE_MS = 10_000

/** Writes a run to one connection, as fast as its client reads. */
export class RunReader implements FeedReader {
  readonly #connection: SSEConnection
  readonly #feed: RunFeed
  readonly #clock: Clock
  readonly #telemetry: Telemetry
  #generation: number
  /** Number of the last event that was sent. */
  #after: number
  #isAwake = false
  #resume: (() => void) | null = null
  /** Time of the first of the failed reads; null after a successful one. */
  #failedAt: number | null = null

  constructor (connection: SSEConnection, feed: RunFeed, { generation, after }: RunStart, clock: Clock, telemetry: Telemetry) {
    this.#connection = connection
    this.#feed = feed
    this.#clock = clock
    this.#telemetry = telemetry
    this.#generation = generation
    this.#after = after
  }

  wake (): void {
    this.#isAwake = true
    if (this.#resume !== null && !this.#sendNow()) this.#resume()
  }

  /**
   * Sends the news of a sleeping reader without a promise, which would cost more than the event. Returns false if something has to be
   * waited for, or is not the usual case.
   */
  #sendNow (): boolean {
    const connection = this.#connection
    if (!connection.isConnected || this.#failedAt !== null) return false
    try {
      const page = this.#feed.read(this.#generation, this.#after)
      if (page instanceof Promise) return false
      const { state, frames } = page
      if (state?.generation !== this.#generation || state.status !== 'running') return false
      if (frames.length > 0 && !connection.writeTogether(page.chunk, frames.length)) return false
      this.#after += frames.length
      return this.#after === state.events
    } catch {
      // The loop reads again, and handles the error.
      return false
    }
  }

  /** Resolves when the run or the stream has ended. Rejects if the run cannot be read for a long time. */
  async play ({ gap }: RunStart, cursor: string | null): Promise<void> {
    const connection = this.#connection
    connection.signal.addEventListener('abort', () => this.wake(), { once: true })
    if (gap !== null) await this.#tellGap(gap, cursor ?? '')
    while (connection.isConnected) {
      this.#isAwake = false
      const page = await this.#read()
      if (page !== null && await this.#take(page)) return
      // A long run that a client reads as fast as it is written would block the process.
      if (this.#isAwake) await endOfTurn()
      else await new Promise<void>(resolve => { this.#resume = resolve })
      this.#resume = null
    }
  }

  /** Reads the next page; resolves with null after a failure. */
  async #read (): Promise<FeedPage | null> {
    try {
      const page = await this.#feed.read(this.#generation, this.#after)
      this.#failedAt = null
      return page
    } catch (error) {
      const now = this.#clock.monotonic()
      this.#failedAt ??= now
      if (now - this.#failedAt >= UNREADABLE_MS) throw error
      this.#clock.after(RETRY_MS, () => this.wake()).unref()
      return null
    }
  }

  /** Sends a page. Returns whether the stream is over. */
  async #take ({ state, frames }: FeedPage): Promise<boolean> {
    if (state === null) return await this.#end(null)
    const { generation, status, events } = state
    if (generation !== this.#generation || this.#after > events) {
      const reason = generation === this.#generation ? 'unknown' : 'epoch'
      const lastEventId = formatRunId(this.#generation, this.#after)
      // Without control events, the client would take the events of another run for the continuation of its own.
      if (!this.#connection.control && this.#after > 0) return await this.#cut()
      this.#generation = generation
      this.#after = 0
      await this.#tellGap(reason, lastEventId)
      this.#isAwake = true
      return false
    }
    for (const frame of frames) {
      if (!await send(this.#connection, frame)) return true
      this.#after++
    }
    // With an empty page, it would read again and again without a pause.
    if (this.#after < events) this.#isAwake ||= frames.length > 0
    else if (status !== 'running') return await this.#end(state)
    return false
  }

  /** Sends the end, and closes the stream. */
  async #end (state: RunState | null): Promise<boolean> {
    const connection = this.#connection
    const status = state?.status ?? 'unknown'
    await send(connection, endFrame(state, connection.control))
    // Without control events, only an orderly end of the response tells the client that nothing is missing.
    if (!connection.control && !isComplete(status)) return await this.#cut()
    await connection.drained()
    connection.close('source-end')
    return true
  }

  async #cut (): Promise<true> {
    await this.#connection.drained()
    this.#connection.fail()
    return true
  }

  /** Sends `sse:gap`, with the id of the beginning: a client that is cut now receives no second gap. */
  async #tellGap (reason: GapReason, lastEventId: string): Promise<void> {
    this.#telemetry.onGap(this.#connection.clientId, reason)
    const id = encodeId(formatRunId(this.#generation, 0))
    if (this.#connection.control) await send(this.#connection, new Frame(id, encodeControl('gap', { reason, lastEventId }), EventPriority.NORMAL))
  }
}

function isComplete (status: RunStatus | 'unknown'): boolean {
  return status === 'done' || status === 'stopped'
}

/** Sends the end of a run that is not kept, and closes the stream. */
export async function endUnknown (connection: SSEConnection): Promise<void> {
  connection.receive(endFrame(null, true))
  await connection.drained()
  connection.close('source-end')
}

/** Returns the frame of `sse:end`. With its id, a client that reconnects receives 204. */
function endFrame (state: RunState | null, control: boolean): Frame {
  // An empty id resets the cursor of the client, which would otherwise ask for the unknown run again and again.
  const id = state === null ? '' : formatRunId(state.generation, state.events + 1)
  if (!control) return new Frame('', encodeIdBlock(id), EventPriority.NORMAL)
  const data = state === null ? { status: 'unknown' } : { status: state.status, ...(state.reason !== undefined && { reason: state.reason }), events: state.events }
  return new Frame(encodeId(id), encodeControl('end', data), EventPriority.NORMAL)
}
