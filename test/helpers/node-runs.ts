import type { Test } from 'tap'
import { Telemetry } from '../../lib/diagnostics/telemetry.js'
import type { RunOptions } from '../../lib/index.js'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { runKey, type RunClaim, type RunState, type RunWatcher } from '../../lib/log/run-store.js'
import type { RunFactory } from '../../lib/runs/producer.js'
import { Runs } from '../../lib/runs/runs.js'
import { testClock } from '../../lib/testing/index.js'
import { counted } from './counted-clock.js'
import { never } from './runs.js'

export const NOBODY = { ownerId: null }

/** A store that another node writes, too. */
class SharedRunStore extends MemoryRunStore {
  problem: Error | null = null
  /** Whether all runs were removed. */
  isEmpty = false
  isClosed = false
  areNewsLost = false
  /** Claims and appends wait for it. */
  gate: Promise<void> | null = null

  override watch (watcher: RunWatcher): void {
    super.watch({ ...watcher, ended: key => { if (!this.areNewsLost) watcher.ended(key) } })
  }

  override async claim (claim: RunClaim) {
    await this.gate
    return super.claim(claim)
  }

  override append (...args: Parameters<MemoryRunStore['append']>): any {
    return this.gate === null ? super.append(...args) : this.gate.then(() => super.append(...args))
  }

  override async get (key: RunClaim['key']): Promise<RunState | null> {
    if (this.problem !== null) throw this.problem
    const state = this.isEmpty ? null : await super.get(key)
    return state && { ...state }
  }

  override async close (): Promise<void> {
    this.isClosed = true
    await super.close()
  }
}

/** The runs of a node with these limits, its store and its clock. */
export function startRuns (t: Test, limits: object = {}) {
  const testing = testClock()
  const clock = counted(testing.clock)
  const store = new SharedRunStore(clock, 1 << 30)
  const logged: [details: any, message: string][] = []
  const note = (details: object, message: string) => { logged.push([details, message]) }
  let opened = 0
  const options = { max: 0, maxPerOwner: 0, maxBytes: 1 << 30, leaseMs: 60_000, drainMs: 1_000, ...limits }
  const runs = new Runs(store, { clock, runs: options }, { error: note, warn: note, info: note, debug: note }, new Telemetry('node'), async () => { opened++ })
  t.teardown(async () => {
    const closed = runs.close()
    await testing.advance(options.drainMs)
    await closed
  })
  return {
    testing,
    clock,
    store,
    logged,
    runs,
    opened: () => opened,
    begin: (id: string, factory: RunFactory = never, more: Partial<RunOptions> = {}) => runs.start(id, factory, { ...NOBODY, ...more }),
    /** Starts a run as another node does. */
    elsewhere: async (id: string) => {
      const claim = { key: runKey(id, null), token: 'other', leaseMs: 60_000, ttlMs: 60_000, joinFinished: false, settings: '' }
      return { ...claim, ...(await MemoryRunStore.prototype.claim.call(store, claim)).state }
    }
  }
}
