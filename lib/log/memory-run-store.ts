import { Closed } from '../errors.js'
import type { Clock, Timer } from '../util/clock.js'
import { RunLog } from './run-log.js'
import type { RunClaim, RunClaimed, RunHeld, RunKey, RunLease, RunListed, RunOutcome, RunPage, RunState, RunStore, RunWatcher } from './run-store.js'

/** Memory of a run in bytes, beside its events and its texts. */
const RUN_BYTES = 1_536

/** A run in memory. */
class MemoryRun {
  readonly log = new RunLog()
  readonly key: RunKey
  readonly token: string
  readonly ttlMs: number
  readonly state: { -readonly [K in keyof RunState]: RunState[K] }
  expiry: Timer | null = null
  readonly #ownBytes: number

  constructor ({ key, token, ttlMs, settings }: RunClaim, generation: number, startedAt: number) {
    this.key = key
    this.token = token
    this.ttlMs = ttlMs
    this.state = { generation, status: 'running', reason: undefined, events: 0, startedAt, endedAt: null, settings, isRead: false }
    this.#ownBytes = RUN_BYTES + key.text.length + settings.length
  }

  /** Memory of the run in bytes. */
  get bytes (): number {
    return this.#ownBytes + this.log.bytes
  }
}

/**
 * Keeps runs in the memory of one node. Leases are ignored: no producer ends without its store. When the runs exceed `maxBytes`, those
 * that have ended are removed, oldest first.
 */
export class MemoryRunStore implements RunStore {
  readonly shared = false
  readonly #clock: Clock
  readonly #maxBytes: number
  /** Runs by the texts of their keys. */
  readonly #runs = new Map<string, MemoryRun>()
  /** Those that have ended, oldest first. */
  readonly #ended = new Set<MemoryRun>()
  #watcher: RunWatcher | null = null
  #bytes = 0
  #lastGeneration = 0
  #closed = false

  constructor (clock: Clock, maxBytes: number) {
    this.#clock = clock
    this.#maxBytes = maxBytes
  }

  watch (watcher: RunWatcher): void {
    this.#watcher = watcher
  }

  async claim (claim: RunClaim): Promise<RunClaimed> {
    const known = this.#find(claim.key)
    if (known !== undefined && (known.state.status === 'running' || claim.joinFinished)) return { state: known.state, started: known.token === claim.token }
    if (known !== undefined) this.#remove(known)
    const now = this.#clock.wall()
    this.#lastGeneration = Math.max(now, this.#lastGeneration + 1)
    const run = new MemoryRun(claim, this.#lastGeneration, now)
    this.#runs.set(run.key.text, run)
    this.#add(run.bytes)
    return { state: run.state, started: true }
  }

  append ({ key, generation, token }: RunLease, after: number, texts: readonly string[]): RunState | null {
    const run = this.#find(key)
    if (run === undefined) return null
    const { state, log } = run
    if (state.status !== 'running' || state.generation !== generation || run.token !== token || log.count !== after) return null
    const { bytes } = log
    for (const text of texts) log.append(text)
    state.events = log.count
    this.#add(log.bytes - bytes)
    if (texts.length > 0) this.#watcher!.news(run.key.text, { generation, after, texts })
    return state
  }

  async finish (key: RunKey, outcome: RunOutcome, held?: RunHeld): Promise<RunState | null> {
    const run = this.#find(key)
    if (run === undefined) return null
    const { state } = run
    if (held !== undefined && state.generation !== held.lease.generation) return null
    if (state.status !== 'running' || (held !== undefined && run.token !== held.lease.token)) return state
    const { status, reason }: RunOutcome = held === undefined || held.after === run.log.count ? outcome : { status: 'lost' }
    state.status = status
    state.reason = reason
    state.endedAt = this.#clock.wall()
    run.log.pack()
    this.#ended.add(run)
    run.expiry = this.#clock.after(run.ttlMs, () => this.#remove(run))
    run.expiry.unref()
    this.#watcher!.ended(run.key.text)
    return state
  }

  async get (key: RunKey): Promise<RunState | null> {
    return this.#find(key)?.state ?? null
  }

  read (key: RunKey, generation: number, after: number, isReader: boolean): RunPage {
    const run = this.#find(key)
    if (run === undefined) return { state: null, texts: [] }
    if (isReader) run.state.isRead = true
    return { state: run.state, texts: run.state.generation === generation ? run.log.read(after) : [] }
  }

  async leave (key: RunKey): Promise<void> {
    const run = this.#runs.get(key.text)
    if (run !== undefined) run.state.isRead = false
  }

  async list (ownerId: string | null): Promise<RunListed[]> {
    this.#assertOpen()
    const runs = [...this.#runs.values()].filter(({ key }) => key.ownerId === ownerId)
    return runs.map(({ key: { runId }, state }) => ({ runId, state })).sort((one, other) => other.state.generation - one.state.generation)
  }

  async close (): Promise<void> {
    this.#closed = true
    for (const run of [...this.#ended]) this.#remove(run)
    this.#runs.clear()
  }

  #find (key: RunKey): MemoryRun | undefined {
    this.#assertOpen()
    return this.#runs.get(key.text)
  }

  #assertOpen (): void {
    if (this.#closed) throw new Closed()
  }

  /** Adds bytes of a run that is running, and makes room for them. */
  #add (bytes: number): void {
    this.#bytes += bytes
    for (const ended of this.#ended) {
      if (this.#bytes <= this.#maxBytes) break
      this.#remove(ended)
    }
  }

  /** Removes a run that has ended. */
  #remove (run: MemoryRun): void {
    this.#clock.cancel(run.expiry)
    this.#ended.delete(run)
    this.#bytes -= run.bytes
    this.#runs.delete(run.key.text)
  }
}
