import type { SSEConnection } from '../connections/connection.js'
import { Flusher } from '../delivery/flusher.js'
import { Closed, InvalidSource } from '../errors.js'
import { runKey, type RunEnd, type RunKey, type RunState, type RunStore } from '../log/run-store.js'
import { inNoContext } from '../util/async-context.js'
import type { Telemetry } from '../diagnostics/telemetry.js'
import type { Clock, Timer } from '../util/clock.js'
import type { Log } from '../util/logger.js'
import { kindOf } from '../util/quote.js'
import { RunFeed } from './feed.js'
import { Producer, type RunFactory } from './producer.js'
import { Producers, type RunsOptions } from './producers.js'
import { RunReader } from './reader.js'
import { Run, type RunHost, type RunResult } from './run.js'
import { keyOf, resolveOwner, resolveRunOptions } from './run-options.js'
import { startOf, type RunStart } from './run-position.js'

/** Interval at which time limits are checked. */
const TICK_MS = 250
/** Interval at which a shared store is read although it has reported no news. */
const POLL_MS = 1_000

/** The runs of one node: those whose sources it reads, and those that its clients read. @internal */
export class Runs implements RunHost {
  readonly store: RunStore
  readonly clock: Clock
  readonly log: Log
  readonly #telemetry: Telemetry
  readonly #open: () => Promise<void>
  readonly #producers: Producers
  readonly #feeds = new Map<string, RunFeed>()
  readonly #flusher = new Flusher(0)
  #timer: Timer | null = null
  #agedAt = 0
  #polledAt = 0

  /** @param open opens the log: the first run can come before the first connection */
  constructor (store: RunStore, { clock, runs }: { readonly clock: Clock, readonly runs: RunsOptions }, log: Log, telemetry: Telemetry, open: () => Promise<void>) {
    this.store = store
    this.clock = clock
    this.log = log
    this.#producers = new Producers(store, clock, runs, log, telemetry, () => this.#tick())
    this.#telemetry = telemetry
    this.#open = open
    store.watch({
      news: (key, events) => this.#feeds.get(key)?.tell(events),
      ended: key => {
        this.#feeds.get(key)?.tell()
        this.#producers.get(key)?.check()
      }
    })
  }

  // --- The public calls ---

  /** See `SSEManager.startRun`. */
  async start (runId: string, factory: RunFactory, options: unknown): Promise<{ run: Run, started: boolean }> {
    const settings = resolveRunOptions(options)
    const key = keyOf(runId, settings.ownerId)
    if (typeof factory !== 'function') throw new InvalidSource(`of a run must be a function that returns it, got ${kindOf(factory)}: a run that is joined needs no source`)
    await this.#ready()
    const full = this.#producers.fullFor(key.ownerId)
    if (full !== null) {
      const state = await this.store.get(key)
      if (state === null || (state.status !== 'running' && settings.ifFinished !== 'join')) throw full
      return { run: this.#joined(key, state, settings.text), started: false }
    }
    const begun = await this.#producers.start(key, factory, settings)
    return begun instanceof Producer ? { run: new Run(this, key, begun), started: true } : { run: this.#joined(key, begun, settings.text), started: false }
  }

  #joined (key: RunKey, state: RunState, settings: string): Run {
    if (state.settings !== settings) this.log.warn({ runId: key.runId, options: settings, running: state.settings }, 'A run was joined with other options than those of its start, which count')
    return this.#run(key, state)
  }

  #run (key: RunKey, state: RunState): Run {
    // The producer learns later than the store that its run was ended elsewhere.
    return new Run(this, key, (state.status === 'running' ? this.#producers.of(key, state.generation) : undefined) ?? { state })
  }

  /** See `SSEManager.getRun`. */
  async get (runId: string, options: unknown): Promise<Run | null> {
    const key = keyOf(runId, resolveOwner(options, 'getRun'))
    await this.#ready()
    const state = await this.store.get(key)
    return state === null ? null : this.#run(key, state)
  }

  /** See `SSEManager.stopRun`. */
  async stop (runId: string, options: unknown): Promise<boolean> {
    const key = keyOf(runId, resolveOwner(options, 'stopRun'))
    await this.#ready()
    // The producer first appends what its source has yielded.
    const producer = this.#producers.get(key.text)
    if (producer !== undefined) {
      producer.end({ status: 'stopped' })
      if ((await producer.finished).status === 'stopped') return true
    }
    // The producer can be that of an earlier run, which was replaced on another node.
    const state = await this.store.finish(key, { status: 'stopped' })
    return state?.status === 'stopped'
  }

  /** See `SSEManager.listRuns`. */
  async list (options: unknown): Promise<Run[]> {
    const ownerId = resolveOwner(options, 'listRuns')
    await this.#ready()
    const runs = await this.store.list(ownerId)
    return runs.map(({ runId, state }) => this.#run(runKey(runId, ownerId), state))
  }

  /** Returns the runs whose sources this node reads, the oldest first. */
  producing (): Producer[] {
    return this.#producers.list()
  }

  async #ready (): Promise<void> {
    if (this.#producers.isClosing) throw new Closed()
    await this.#open()
  }

  // --- Reading ---

  /**
   * Returns a run as it is now if its known state does not explain the cursor of a client: the application may have kept the object for
   * a long time. Null if the run is not kept any more.
   */
  async current (run: Run, cursor: string | null): Promise<Run | null> {
    const { gap } = startOf(run.state, cursor)
    if (gap !== 'epoch' && gap !== 'unknown') return run
    const state = await this.store.get(run.key)
    return state === null ? null : this.#run(run.key, state)
  }

  /** Writes a run to a connection. Resolves when the run or the stream has ended. */
  async play (connection: SSEConnection, run: Run, cursor: string | null): Promise<void> {
    if (!connection.isConnected) return
    const start: RunStart = startOf(run.state, cursor)
    this.#telemetry.onResume(connection.clientId, start.gap !== null ? 'gap' : cursor ? 'resumed' : 'fresh')
    const feed = this.#feed(run.key)
    const reader = new RunReader(connection, feed, start, this.clock, this.#telemetry)
    feed.join(reader)
    try {
      await reader.play(start, cursor)
    } finally {
      if (feed.leave(reader)) {
        this.#feeds.delete(feed.key.text)
        this.store.leave(feed.key).catch(() => {})
      }
    }
  }

  #feed (key: RunKey): RunFeed {
    let feed = this.#feeds.get(key.text)
    if (feed === undefined) this.#feeds.set(key.text, feed = new RunFeed(this.store, key, feed => this.#flusher.mark(feed)))
    this.#tick()
    return feed
  }

  async outcome (key: RunKey, known: RunState): Promise<RunResult> {
    const { generation } = known
    let state: RunState | null = await this.#producers.of(key, generation)?.finished ?? known
    while (state.status === 'running') {
      if (this.#producers.isClosing) throw new Closed()
      const next = await this.store.get(key).catch(error => {
        if (error instanceof Closed) throw error
        return known
      })
      if (next?.generation !== generation) return { status: 'lost', events: state.events }
      state = next
      if (state.status === 'running') await new Promise<void>(resolve => { this.clock.after(POLL_MS, resolve).unref() })
    }
    const { status, reason, events } = state
    return { status: status as RunEnd, ...(reason !== undefined && { reason }), events }
  }

  // --- Time ---

  /** Starts the timer of this node's runs, which stops by itself. */
  #tick (): void {
    if (this.#timer !== null) return
    this.#agedAt = this.#polledAt = this.clock.monotonic()
    inNoContext(() => {
      this.#timer = this.clock.every(TICK_MS, () => this.#age())
    })
  }

  #age (): void {
    const now = this.clock.monotonic()
    // A longer time is one in which the process stood still.
    const elapsedMs = Math.min(now - this.#agedAt, 2 * TICK_MS)
    this.#agedAt = now
    this.#producers.age(elapsedMs)
    if (this.store.shared && now - this.#polledAt >= POLL_MS) {
      this.#polledAt = now
      for (const feed of this.#feeds.values()) feed.poll()
    }
    if (!this.#producers.isEmpty || this.#feeds.size > 0) return
    this.clock.cancel(this.#timer)
    this.#timer = null
  }

  // --- The end ---

  /** Rejects new runs. Those of this node have `runs.drainMs` to end, and are lost then. Resolves when all have ended. */
  drain (): Promise<void> {
    return this.#producers.drain()
  }

  /** Drains, then closes the store. */
  async close (): Promise<void> {
    await this.drain()
    this.clock.cancel(this.#timer)
    this.#timer = null
    await this.store.close()
  }
}
