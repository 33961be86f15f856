import { Buffer } from 'node:buffer'
import { Closed, StreamEnded } from '../errors.js'
import type { RunEnd, RunKey, RunLease, RunOutcome, RunState, RunStore } from '../log/run-store.js'
import { readSource, type Sink } from '../streams/source-reader.js'
import { ItemDecoder } from '../streams/item-decoder.js'
import type { Result } from '../streams/source.js'
import type { Clock } from '../util/clock.js'
import type { Log } from '../util/logger.js'
import { textOf, textOfDecoded, type RunItem } from './item.js'
import type { RunSettings } from './run-options.js'

/** A source of a run. */
export type RunSource = Iterable<RunItem> | AsyncIterable<RunItem> | ReadableStream<RunItem>
/** A function that returns the source of a run, or a promise of it. */
export type RunFactory = (context: {
  /** Aborts if the run ends before its source. */
  signal: AbortSignal
}) => RunSource | Promise<RunSource>

/** Bytes that wait to be appended, from which the source waits. */
const MAX_PENDING_BYTES = 64 * 1024
/** The lease is renewed when this part of it has passed. */
const RENEWALS_PER_LEASE = 3
/** Interval of renewals of a run that is stopped without readers: each reports whether there are readers. */
const LOOK_MS = 500
const FIRST_RETRY_MS = 50
const MAX_RETRY_MS = 1_000

/** The functions of the node that a producer uses. */
export interface ProducerHost {
  readonly store: RunStore
  readonly clock: Clock
  readonly log: Log
  /** Whether the node ends without waiting any longer for a store that cannot be reached. */
  readonly isOver: boolean
  /** Adds bytes of the runs of this node. Returns false if they exceed `runs.maxBytes`. */
  reserve (bytes: number): boolean
  /** Handles the end of a producer. Called once. */
  ended (producer: Producer): void
}

/** Reads the source of one run on this node, and appends its events to the store. */
export class Producer implements Sink {
  readonly lease: RunLease
  /** Resolves with the last state; its status is the end. */
  readonly finished: Promise<RunState>
  readonly #host: ProducerHost
  readonly #settings: RunSettings
  readonly #abort = new AbortController()
  readonly #decoder = new ItemDecoder()
  #state: RunState
  /** Encoded events that are not appended yet. */
  #pending: string[] = []
  #pendingBytes = 0
  #appending: Promise<void> | null = null
  #events = 0
  #bytes = 0
  /** Number of events in the store. */
  #after = 0
  #outcome: RunOutcome | null = null
  #finish!: (state: RunState) => void
  /** Times in milliseconds, without those in which the process stood still. */
  #ageMs = 0
  #idleMs = 0
  #unreadMs = 0
  /** Whether the source is being waited for. */
  #isWaiting = true
  #renewedAt: number
  #renewing = false

  constructor (host: ProducerHost, lease: RunLease, settings: RunSettings, state: RunState) {
    this.#host = host
    this.lease = lease
    this.#settings = settings
    this.#state = state
    this.#renewedAt = host.clock.monotonic()
    this.finished = new Promise(resolve => { this.#finish = resolve })
  }

  get key (): RunKey {
    return this.lease.key
  }

  /** The state as far as it is appended. */
  get state (): RunState {
    return this.#state
  }

  /** Size of the events so far in bytes. */
  get bytes (): number {
    return this.#bytes
  }

  /** Reads the source to its end. Never rejects. */
  async produce (factory: RunFactory): Promise<void> {
    try {
      const { signal } = this.#abort
      await readSource(factory({ signal }), signal, this)
      await this.end({ status: 'done' })
    } catch (err) {
      if (this.#outcome === null) this.#host.log.error({ err, runId: this.key.runId }, 'The source of a run failed')
      await this.end({ status: 'failed', reason: 'error' })
    }
  }

  /** Whether the run takes more of its source. See `Sink`. */
  get isOpen (): boolean {
    return this.#outcome === null
  }

  /** Takes an item of the source. See `Sink`. */
  take ({ done, value }: Result): Promise<void> | null {
    this.#isWaiting = false
    this.#idleMs = 0
    const text = done === true ? textOfDecoded(this.#decoder.end()) : textOf(value as RunItem, this.#decoder)
    if (text !== null) this.#add(text)
    if (this.#pendingBytes > MAX_PENDING_BYTES) return this.#relief()
    this.#isWaiting = true
    return null
  }

  /** Resolves when the events that wait are being appended. */
  async #relief (): Promise<void> {
    await this.#appending
    this.#isWaiting = true
  }

  /** Queues an event, or ends the run if it exceeds a limit. */
  #add (text: string): void {
    const bytes = Buffer.byteLength(text)
    const { maxEvents, maxBytes } = this.#settings
    if (this.#events >= maxEvents || this.#bytes + bytes > maxBytes || !this.#host.reserve(bytes)) {
      this.#host.log.warn({ runId: this.key.runId, events: this.#events, bytes: this.#bytes }, 'A run has exceeded a limit and is ended')
      this.end({ status: 'failed', reason: 'limit' })
      return
    }
    this.#events++
    this.#bytes += bytes
    if (this.#appending === null) return this.#append([text])
    this.#pending.push(text)
    this.#pendingBytes += bytes
  }

  /** Appends events. Further events wait for the answer of the store, unless it answers at once. */
  #append (texts: readonly string[]): void {
    let answer: RunState | null | Promise<RunState | null>
    try {
      answer = this.#host.store.append(this.lease, this.#after, texts)
    } catch (error) {
      answer = Promise.reject(error)
    }
    if (!(answer instanceof Promise)) return this.#appended(answer, texts.length)
    const after = this.#after
    const answered = (state: RunState | null): void => {
      this.#appending = null
      this.#appended(state, texts.length)
    }
    this.#appending = answer.then(answered, () => this.#insist(() => this.#host.store.append(this.lease, after, texts), answer).then(answered))
  }

  #appended (state: RunState | null, count: number): void {
    const pending = this.#pending
    if (pending.length > 0) {
      this.#pending = []
      this.#pendingBytes = 0
    }
    if (state === null) {
      this.#lose()
      return
    }
    this.#after += count
    // Before the new state, which can end the run: its end follows all its events.
    if (pending.length > 0) this.#append(pending)
    this.#renewed(state)
  }

  #renewed (state: RunState): void {
    this.#state = state
    this.#renewedAt = this.#host.clock.monotonic()
    if (state.isRead) this.#unreadMs = 0
    // Decided by a new state only: a reader can have come since the last one.
    else if (this.#unreadMs >= this.#settings.graceMs) this.end({ status: 'stopped', reason: 'disconnect' })
  }

  /** Repeats a call while the store cannot be reached, for as long as the lease can last. Then resolves with null. */
  async #insist<T> (call: () => T | Promise<T>, first: Promise<T> | null = null): Promise<T | null> {
    const { clock, log } = this.#host
    for (let retryMs = FIRST_RETRY_MS; ; retryMs = Math.min(2 * retryMs, MAX_RETRY_MS)) {
      try {
        const answer = first ?? call()
        first = null
        return await answer
      } catch (err) {
        if (err instanceof Closed || this.#host.isOver || clock.monotonic() - this.#renewedAt > this.lease.leaseMs) {
          log.error({ err, runId: this.key.runId }, 'A run is lost: its events could not be stored')
          return null
        }
        await new Promise<void>(resolve => { clock.after(retryMs, resolve) })
      }
    }
  }

  /** Handles that the run does not belong to this producer any more, or that the store has lost events of it. */
  async #lose (): Promise<void> {
    const state = await this.#host.store.get(this.key).catch(() => null)
    const isEnded = state !== null && state.generation === this.lease.generation && state.status !== 'running'
    this.end({ status: isEnded ? state.status as RunEnd : 'lost' })
  }

  /** Ends the run. The first call decides, unless the store has another end already. Resolves when the end is stored. Never rejects. */
  async end (outcome: RunOutcome): Promise<void> {
    if (this.#outcome !== null) return
    this.#outcome = outcome
    const { status } = outcome
    if (status !== 'done') this.#abort.abort(new StreamEnded(outcome.reason ?? status))
    while (this.#appending !== null) await this.#appending
    // All events: if some could not be appended, the run is lost.
    const state = await this.#insist(() => this.#host.store.finish(this.key, outcome, { lease: this.lease, after: this.#events }))
    this.#state = state !== null && state.status !== 'running' ? state : { ...this.#state, status: 'lost', endedAt: this.#host.clock.wall() }
    this.#host.ended(this)
    this.#finish(this.#state)
  }

  /** Checks all time limits. Called repeatedly. `elapsedMs`: the time since the last call, without that in which the process stood still. */
  age (elapsedMs: number): void {
    const { maxDurationMs, idleTimeoutMs, graceMs } = this.#settings
    this.#ageMs += elapsedMs
    if (this.#isWaiting) this.#idleMs += elapsedMs
    this.#unreadMs = this.#state.isRead ? 0 : this.#unreadMs + elapsedMs
    if (this.#ageMs >= maxDurationMs || this.#idleMs >= idleTimeoutMs) this.end({ status: 'failed', reason: 'timeout' })
    else if (this.#unreadMs >= graceMs || this.#host.clock.monotonic() - this.#renewedAt >= (graceMs === Infinity ? this.lease.leaseMs / RENEWALS_PER_LEASE : Math.min(LOOK_MS, this.lease.leaseMs / RENEWALS_PER_LEASE))) this.check()
  }

  /** Renews the lease, and notices if the run was ended elsewhere. */
  async check (): Promise<void> {
    // An append renews the lease as well.
    if (this.#renewing || this.#appending !== null || this.#outcome !== null) return
    this.#renewing = true
    const after = this.#after
    const state = await this.#insist(() => this.#host.store.append(this.lease, after, []))
    this.#renewing = false
    if (state !== null) this.#renewed(state)
    // Events were appended meanwhile, so the position has changed.
    else if (this.#after === after && this.#appending === null) this.#lose()
  }
}
