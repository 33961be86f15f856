import type { Test } from 'tap'
import { SnapshotLoads, type Load, type LoadWaiter, type SnapshotSource } from '../../lib/connections/snapshot-loads.js'
import { testClock } from '../../lib/testing/index.js'
import { kClock, type Clock, type Timer } from '../../lib/util/clock.js'
import { MemoryBudget } from '../../lib/util/memory-budget.js'
import { recorder } from '../helpers/logged.js'
import { turns } from '../helpers/wait.js'

/** A connection that waits for a load. */
export class Waiter implements LoadWaiter {
  blocked = false
  load: Load | null = null
  readonly calls: string[] = []
  constructor (readonly bench: Bench) {}

  begin (): void {
    this.calls.push('begin')
  }

  loadStarted ({ at }: Load): void {
    this.calls.push(`started ${at!.position}`)
  }

  loaded (): void {
    this.calls.push('loaded')
  }

  loadFailed ({ abort }: Load): void {
    this.calls.push(abort.signal.aborted ? 'failed after its signal' : 'failed')
  }

  postpone (): void {
    this.calls.push('postponed')
    this.leave()
  }

  leave (): void {
    this.bench.loads.leave(this.load!, this)
  }
}

/** A call of the application. */
export interface Call {
  readonly name: string
  readonly signal: AbortSignal
  readonly end: (result: unknown) => Promise<void>
}

/** The loads of a node, without connections. */
export class Bench {
  readonly time = testClock()
  readonly timers = new Set<Timer>()
  readonly budget: MemoryBudget
  readonly eventLog = { epoch: 'e', position: 0 }
  readonly recorder = recorder()
  readonly loads: SnapshotLoads
  readonly calls: Call[] = []

  constructor (limit = 1e6) {
    const { after, cancel, ...rest } = (this.time.options as unknown as Record<typeof kClock, Clock>)[kClock]
    const clock: Clock = {
      ...rest,
      after: (ms, run) => {
        const timer = after(ms, () => {
          this.timers.delete(timer)
          return run()
        })
        this.timers.add(timer)
        return timer
      },
      cancel: timer => {
        this.timers.delete(timer!)
        cancel(timer)
      }
    }
    this.budget = new MemoryBudget(limit)
    this.loads = new SnapshotLoads({ clock, maxEventBytes: 1e6 }, this.budget, this.eventLog, this.recorder.log)
  }

  /** Asks for a load. Its calls of the application end when a test ends them. */
  begin (name: string, source: Partial<SnapshotSource> = {}, floor = this.eventLog.position, waiter = new Waiter(this)): Waiter {
    const ask = (signal: AbortSignal): Promise<unknown> => new Promise((resolve, reject) => {
      const end = async (result: unknown): Promise<void> => {
        if (result instanceof Error) reject(result)
        else resolve(result)
        await turns(1)
      }
      this.calls.push({ name, signal, end })
    })
    waiter.load = this.loads.begin({ load: () => null, timeoutMs: 1_000, maxConcurrent: 16, ...source }, ask, waiter, floor)
    return waiter
  }

  /** The names of all calls so far. */
  async called (): Promise<string[]> {
    await turns(1)
    return this.calls.map(({ name }) => name)
  }

  /** What must be true when nobody waits any more: no load runs, waits, is shared, or has memory or a timer. */
  async rest (t: Test): Promise<void> {
    t.strictSame([this.budget.used, this.timers.size], [0, 0], 'no memory and no timer')
    const from = this.calls.length
    const waiters = [...['k', 'l'].map(key => this.begin(key, { key })), this.begin('low', { maxConcurrent: 3 })]
    t.strictSame((await this.called()).slice(from), ['k', 'l', 'low'], 'nothing runs, and nothing is shared')
    for (const waiter of waiters) waiter.leave()
    for (const { end } of this.calls.slice(from)) await end(null)
    t.equal(this.timers.size, 0)
  }
}

/** An event of so many bytes. */
export const event = (bytes: number) => ({ data: 'x'.repeat(bytes - 'data: \n\n'.length) })
