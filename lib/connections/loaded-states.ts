import type { Clock } from '../util/clock.js'
import type { Held, MemoryBudget } from '../util/memory-budget.js'

/** Time without a write after which a client that has begun to receive a state does not read. While it reads, it often cannot be written to either. */
const UNREAD_MS = 2_000

/** A connection that waits to send a state. */
export interface StateWaiter {
  /** Whether the connection cannot be written to at present. */
  readonly blocked: boolean
  /** The memory is needed. The connection leaves the load, and asks again when it can be written to. */
  postpone (): void
}

/** A connection that has begun to send a state. */
export interface StateSender {
  readonly blocked: boolean
  /** Time of the last write, in milliseconds. */
  readonly lastWriteAt: number
  /** The memory is needed. The stream ends. */
  giveWay (): void
}

/** A state whose events are in memory. */
export interface LoadedState {
  /** Memory of its events that are not sent, in bytes. */
  readonly heldBytes: number
  readonly waiters: ReadonlySet<StateWaiter>
  readonly senders: ReadonlySet<StateSender>
}

/** The states that connections wait to send or have not sent to the end. If memory is needed, clients that do not read lose theirs. */
export class LoadedStates {
  readonly #budget: MemoryBudget
  readonly #clock: Clock
  readonly #states = new Set<LoadedState>()

  constructor (budget: MemoryBudget, clock: Clock) {
    this.#budget = budget
    this.#clock = clock
  }

  /** Adds a state, or removes it if no connection has it any more. */
  update (state: LoadedState): void {
    if (state.waiters.size + state.senders.size > 0) this.#states.add(state)
    else this.#states.delete(state)
  }

  /**
   * Frees memory until `thing` fits. Returns whether it fits. Logged events are given back first: they can be read again. Ends no stream if
   * all unread states together are not enough.
   * @param beside bytes that are freed as well if there are as many, so that not each event of a large state looks at all states
   */
  makeRoom (thing: Held, beside: number): boolean {
    const budget = this.#budget
    if (budget.reclaim(thing, beside)) return true
    const unread = this.#unread()
    if (thing.bytes > budget.limit - budget.used + unread.reduce((sum, { state: { heldBytes } }) => sum + heldBytes, 0)) return false
    for (const { state: { waiters, senders } } of unread) {
      if (budget.fits(thing, beside)) break
      for (const waiter of waiters) waiter.postpone()
      for (const sender of senders) sender.giveWay()
    }
    return budget.fits(thing)
  }

  /** The states that only clients have that do not read: first those that no client has begun to receive, then the longest unread. */
  #unread (): Unread[] {
    const unread: Unread[] = []
    const since = this.#clock.monotonic() - UNREAD_MS
    for (const state of this.#states) {
      const readAt = lastReadAt(state)
      if (readAt <= since) unread.push({ state, readAt })
    }
    return unread.sort((one, other) => one.readAt - other.readAt)
  }
}

interface Unread {
  readonly state: LoadedState
  readonly readAt: number
}

/** Returns the time of the last write to a client that has begun to receive a state; -Infinity if there is none, Infinity if one of its clients can be written to. */
function lastReadAt ({ waiters, senders }: LoadedState): number {
  let readAt = -Infinity
  for (const { blocked } of waiters) if (!blocked) return Infinity
  for (const { blocked, lastWriteAt } of senders) readAt = Math.max(readAt, blocked ? lastWriteAt : Infinity)
  return readAt
}
