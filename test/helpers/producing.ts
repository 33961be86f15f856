import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import type { RunHeld, RunLease, RunOutcome, RunState } from '../../lib/log/run-store.js'
import { runKey } from '../../lib/log/run-store.js'
import { Producer, type ProducerHost, type RunFactory } from '../../lib/runs/producer.js'
import { resolveRunOptions, type RunOptions } from '../../lib/runs/run-options.js'
import { testClock } from '../../lib/testing/index.js'
import type { Clock } from '../../lib/util/clock.js'
import { Hand } from './runs.js'
import { counted } from './counted-clock.js'

/** A call that has arrived at the store, and is carried out and answered when the test says so. */
export interface Held {
  perform (): void
  answer (): void
}

/** A run store on another machine: its states are copies, and calls can fail or take their time. */
export class RemoteRunStore extends MemoryRunStore {
  /** The error of all calls; null if the store can be reached. */
  problem: Error | null = null
  /** Calls of `append` that wait, in order; null if they are answered at once. */
  held: Held[] | null = null
  /** All calls of `append`: the time, the position, and the number of events. */
  readonly appends: [at: number, after: number, count: number][] = []
  readonly #clock: Clock

  constructor (clock: Clock) {
    super(clock, 1 << 30)
    this.#clock = clock
  }

  override append (lease: RunLease, after: number, texts: readonly string[]): any {
    this.appends.push([this.#clock.monotonic(), after, texts.length])
    if (this.problem !== null) return Promise.reject(this.problem)
    const append = (): RunState | null => copy(super.append(lease, after, texts))
    if (this.held === null) return append()
    const { held } = this
    return new Promise(resolve => {
      let state: RunState | null
      held.push({ perform: () => { state = append() }, answer: () => resolve(state) })
    })
  }

  override async finish (key: RunLease['key'], outcome: RunOutcome, held?: RunHeld): Promise<RunState | null> {
    if (this.problem !== null) throw this.problem
    return copy(await super.finish(key, outcome, held))
  }

  override async get (key: RunLease['key']): Promise<RunState | null> {
    if (this.problem !== null) throw this.problem
    return copy(await super.get(key))
  }

  /** Carries out and answers all calls that wait, and those that come. */
  release (): void {
    const held = this.held ?? []
    this.held = null
    for (const call of held) {
      call.perform()
      call.answer()
    }
  }
}

function copy (state: RunState | null): RunState | null {
  return state === null ? null : { ...state }
}

/** A run `a` in a remote store, its producer, and the source that a test feeds by hand. Nothing calls `producer.age()` but the test. */
export async function startProducer (options: Partial<RunOptions> = {}, leaseMs = 60_000, source?: RunFactory) {
  const clock = testClock()
  const timing = counted(clock.clock)
  const store = new RemoteRunStore(timing)
  store.watch({ news () {}, ended () {} })
  const key = runKey('a', null)
  const lease = { key, token: 't', leaseMs, ttlMs: 60_000 }
  const { state } = await store.claim({ ...lease, joinFinished: false, settings: '' })
  const logged: string[] = []
  const note = (_details: object, message: string) => { logged.push(message) }
  const reserved: number[] = []
  const ended: Producer[] = []
  const host = {
    store,
    clock: timing,
    log: { error: note, warn: note, info: note, debug: note },
    isOver: false as boolean,
    reserve (bytes: number) {
      reserved.push(bytes)
      return true
    },
    ended (producer: Producer) { ended.push(producer) }
  } satisfies ProducerHost
  const producer = new Producer(host, { ...lease, generation: state.generation }, resolveRunOptions({ ownerId: null, ...options }), { ...state })
  const hand = new Hand()
  return { clock, store, key, host, producer, hand, logged, reserved, ended, produced: producer.produce(source ?? hand.factory) }
}
