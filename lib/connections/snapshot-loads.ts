import { setImmediate } from 'node:timers/promises'
import { Frame } from '../delivery/frame.js'
import { SnapshotAborted, SnapshotMemoryFull, SnapshotTooLarge } from '../errors.js'
import type { EventInput } from '../events/event-input.js'
import { composeMessage, type MessageOptions } from '../events/message.js'
import type { Target } from '../events/target.js'
import type { LogPosition } from '../log/broker.js'
import { inNoContext } from '../util/async-context.js'
import type { Clock, Timer } from '../util/clock.js'
import type { Log } from '../util/logger.js'
import type { MemoryBudget } from '../util/memory-budget.js'
import { encodeEvent } from '../wire/event-stream.js'
import { LoadedStates, type LoadedState, type StateSender, type StateWaiter } from './loaded-states.js'

/**
 * Why a state is loaded.
 * - `connect`: the client has no state.
 * - `gap`: the client has missed events.
 * - `added`: subscriptions were added, and the client has no state of them.
 */
export type SnapshotReason = 'connect' | 'gap' | 'added'

/** The option `snapshot`, validated. */
export interface SnapshotSource {
  readonly load: (question: never) => unknown
  readonly key?: string | undefined
  readonly timeoutMs: number
  readonly maxConcurrent: number
}

/** A connection that waits for a load. */
export interface LoadWaiter extends StateWaiter {
  /** The load starts, and its position is known. Called at once for a connection that joins a running load. */
  loadStarted (load: Load): void
  /** The load has ended; its frames can be used. */
  loaded (): void
  /** The load has failed or was late. */
  loadFailed (load: Load): void
  /** The call of the application has ended that continued after the last waiter, which was this one, had left. */
  begin (): void
}

/** Target of the frames of a snapshot. It matches no connection: when rights change, frames that are being written end the stream. */
const NOBODY: Target = { clientIds: [] }
/** Events of one load that are encoded in one turn of the event loop. */
const EVENTS_PER_TURN = 256

/** One call of the application's `load`, for one connection or for all connections with the same key. */
export class Load implements LoadedState {
  /** Fixed when the load starts, before `load` is called: the state contains the events up to it, and possibly newer ones. */
  at: LogPosition | null = null
  readonly source: SnapshotSource
  /** Calls the application. */
  readonly ask: (signal: AbortSignal) => unknown
  readonly waiters = new Set<LoadWaiter>()
  readonly senders = new Set<StateSender>()
  /** The encoded events. Complete when the load has ended. */
  frames: Frame[] = []
  bytes = 0
  state: 'waiting' | 'running' | 'done' | 'over' = 'waiting'
  timer: Timer | null = null
  /** Whether it counts in the limit of running loads. Its call of the application can continue when the load is over. */
  isCounted = false
  /** The waiter that left last. */
  last: LoadWaiter | null = null
  readonly abort = new AbortController()

  constructor (source: SnapshotSource, ask: (signal: AbortSignal) => unknown) {
    this.source = source
    this.ask = ask
  }

  get heldBytes (): number {
    return this.frames.reduce((sum, { bytes, holders }) => holders > 0 ? sum + bytes : sum, 0)
  }
}

/** The options that concern loads; see `SSEOptions`. */
interface LoadOptions extends MessageOptions {
  readonly clock: Clock
}

/** The loads of all snapshots of a node: limits how many run at a time, and shares those with the same key. */
export class SnapshotLoads {
  readonly #options: LoadOptions
  readonly #budget: MemoryBudget
  readonly #eventLog: LogPosition
  readonly #log: Log
  /** Loads that wait until fewer are running, oldest first. */
  readonly #queue = new Set<Load>()
  readonly #loaded: LoadedStates
  /** The loads with a key that have not ended. */
  readonly #shared = new Map<string, Load>()
  #running = 0

  constructor (options: LoadOptions, budget: MemoryBudget, eventLog: LogPosition, log: Log) {
    this.#options = options
    this.#budget = budget
    this.#loaded = new LoadedStates(budget, options.clock)
    this.#eventLog = eventLog
    this.#log = log
  }

  /**
   * Starts a load as soon as fewer than `maxConcurrent` are running and no other waits, or joins one with the same key.
   * @param floor earliest position of a running load that can be joined: the connection was sent events up to it
   */
  begin (source: SnapshotSource, ask: (signal: AbortSignal) => unknown, waiter: LoadWaiter, floor: number): Load {
    const { key } = source
    const shared = key === undefined ? undefined : this.#shared.get(key)
    if (shared !== undefined && (shared.at === null || (shared.at.epoch === this.#eventLog.epoch && shared.at.position >= floor))) {
      shared.waiters.add(waiter)
      return shared
    }
    const load = new Load(source, ask)
    load.waiters.add(waiter)
    if (key !== undefined) this.#shared.set(key, load)
    this.#queue.add(load)
    this.#time(load, 'did not start')
    this.#startNext()
    return load
  }

  /** Removes a waiter. When the last one has left, the load is aborted, or its frames are released. */
  leave (load: Load, waiter: LoadWaiter): void {
    load.waiters.delete(waiter)
    if (load.waiters.size > 0) return
    load.last = waiter
    this.#end(load)
  }

  /** Removes a connection that has sent the loaded events, or has discarded them. */
  sent (load: Load, sender: StateSender): void {
    load.senders.delete(sender)
    if (load.state === 'over' && load.senders.size === 0) load.frames = []
    this.#loaded.update(load)
  }

  #startNext (): void {
    for (const load of this.#queue) {
      // Nor does a later one start: a load with a low limit would never find so few running.
      if (this.#running >= load.source.maxConcurrent) return
      this.#queue.delete(load)
      this.#running++
      load.isCounted = true
      load.state = 'running'
      this.#time(load, 'did not end')
      inNoContext(() => { this.#run(load) })
    }
  }

  /** Limits the time of the current state of a load. */
  #time (load: Load, what: string): void {
    const { clock } = this.#options
    const { timeoutMs } = load.source
    clock.cancel(load.timer)
    load.timer = inNoContext(() => clock.after(timeoutMs, () => {
      this.#fail(load, new SnapshotAborted(`it ${what} within ${timeoutMs} ms`))
      this.#uncount(load)
    }))
    load.timer.unref()
  }

  async #run (load: Load): Promise<void> {
    try {
      // Not called at once: the caller delivers events at present.
      await Promise.resolve()
      // What is loaded for clients that have stopped reading meanwhile would wait in memory.
      if (areBlocked(load.waiters)) for (const waiter of [...load.waiters]) waiter.postpone()
      if (load.state === 'running') {
        const { epoch, position } = this.#eventLog
        load.at = { epoch, position }
        for (const waiter of load.waiters) waiter.loadStarted(load)
        await this.#collect(load)
      }
      if (load.state === 'running') this.#succeed(load)
    } catch (error) {
      this.#fail(load, error)
    }
    this.#uncount(load)
  }

  async #collect (load: Load): Promise<void> {
    const result = await load.ask(load.abort.signal)
    if (result === null) return
    if (!isIterable(result)) return this.#add(load, result)
    for await (const item of result) {
      if (load.state !== 'running') return
      this.#add(load, item)
      if (load.frames.length % EVENTS_PER_TURN === 0) await setImmediate()
    }
  }

  #add (load: Load, item: unknown): void {
    if (load.state !== 'running') return
    const { event, data, priority, retry } = composeMessage(item as EventInput, { ephemeral: true }, this.#options)
    const frame = new Frame('', encodeEvent(event, data, retry), priority, 0, null, NOBODY)
    if (!this.#budget.fits(frame)) this.#makeRoom(load, frame)
    // To make room ends streams, whose listeners can end this load.
    if (!isRunning(load)) return
    this.#budget.hold(frame)
    load.frames.push(frame)
    load.bytes += frame.bytes
  }

  #makeRoom (load: Load, frame: Frame): void {
    const { limit } = this.#budget
    if (load.bytes + frame.bytes > limit) throw new SnapshotTooLarge(limit)
    if (!this.#loaded.makeRoom(frame, Math.min(load.bytes, limit / 16))) throw new SnapshotMemoryFull(limit)
  }

  #succeed (load: Load): void {
    this.#forget(load)
    load.state = 'done'
    this.#loaded.update(load)
    for (const waiter of load.waiters) waiter.loaded()
  }

  #fail (load: Load, error: unknown): void {
    if (load.state === 'done' || load.state === 'over') return
    const waiters = [...load.waiters]
    load.waiters.clear()
    this.#drop(load)
    this.#log.error({ err: error, ...(load.source.key !== undefined && { key: load.source.key }), connections: waiters.length }, 'Loading a snapshot failed; the streams that wait for it end with snapshot-error')
    // Before the application's listeners of the signal are called: they could change the streams.
    for (const waiter of waiters) waiter.loadFailed(load)
    load.abort.abort(error instanceof SnapshotAborted ? error : new SnapshotAborted('it has failed'))
  }

  /** Ends a load for which no connection waits. A call of the application that continues counts until its time has passed. */
  #end (load: Load): void {
    if (load.state === 'over') return
    const isLoaded = load.state === 'done'
    this.#drop(load)
    if (!isLoaded) load.abort.abort(new SnapshotAborted('no client waits for it'))
  }

  #drop (load: Load): void {
    this.#forget(load)
    load.state = 'over'
    this.#loaded.update(load)
    for (const frame of load.frames) this.#budget.release(frame)
    // Those who send it have frames of it still.
    if (load.senders.size === 0) load.frames = []
  }

  /** No further connection joins the load. */
  #forget (load: Load): void {
    const { key } = load.source
    if (key !== undefined && this.#shared.get(key) === load) this.#shared.delete(key)
    if (!this.#queue.delete(load)) return
    this.#options.clock.cancel(load.timer)
    // Those behind it can have a higher limit.
    this.#startNext()
  }

  #uncount (load: Load): void {
    this.#options.clock.cancel(load.timer)
    if (!load.isCounted) return
    load.isCounted = false
    this.#running--
    this.#startNext()
    load.last?.begin()
  }
}

function areBlocked (waiters: Iterable<LoadWaiter>): boolean {
  for (const { blocked } of waiters) if (!blocked) return false
  return true
}

function isRunning ({ state }: Load): boolean {
  return state === 'running'
}

function isIterable (value: unknown): value is Iterable<unknown> | AsyncIterable<unknown> {
  return typeof value === 'object' && value !== null && (Symbol.asyncIterator in value || Symbol.iterator in value)
}
