import { Closed, TooManyRuns, TooManyUserRuns } from '../errors.js'
import type { RunEnd, RunKey, RunState, RunStore } from '../log/run-store.js'
import type { Clock } from '../util/clock.js'
import type { Telemetry } from '../diagnostics/telemetry.js'
import { createId } from '../util/id.js'
import type { Log } from '../util/logger.js'
import { Producer, type ProducerHost, type RunFactory } from './producer.js'
import type { RunSettings } from './run-options.js'

/** The options of runs on this node; see `SSEOptions`. */
export interface RunsOptions {
  readonly max: number
  readonly maxPerOwner: number
  readonly maxBytes: number
  readonly leaseMs: number
  readonly drainMs: number
}

/** The runs whose sources this node reads, within its limits, until it closes. */
export class Producers implements ProducerHost {
  readonly store: RunStore
  readonly clock: Clock
  readonly log: Log
  readonly #options: RunsOptions
  readonly #telemetry: Telemetry
  readonly #onStart: () => void
  readonly #producers = new Map<string, Producer>()
  /** Size of the runs, in bytes. */
  #bytes = 0
  /** The runs that are being started. */
  readonly #starting = new Set<{ readonly key: RunKey }>()
  #draining: Promise<void> | null = null
  /** Whether the time of a shutdown is over. */
  isOver = false
  #onEnded: (() => void) | null = null

  /** @param onStart called when there is a producer, which needs `age` from then on */
  constructor (store: RunStore, clock: Clock, options: RunsOptions, log: Log, telemetry: Telemetry, onStart: () => void) {
    this.store = store
    this.clock = clock
    this.log = log
    this.#options = options
    this.#telemetry = telemetry
    this.#onStart = onStart
  }

  get isEmpty (): boolean {
    return this.#producers.size === 0
  }

  /** Whether the node closes. */
  get isClosing (): boolean {
    return this.#draining !== null
  }

  /** The runs, the oldest first. */
  list (): Producer[] {
    return [...this.#producers.values()]
  }

  /** Returns the producer with this id, of the newest generation that this node knows. */
  get (id: string): Producer | undefined {
    return this.#producers.get(id)
  }

  /** Returns the producer of this generation of a run. */
  of (key: RunKey, generation: number): Producer | undefined {
    const producer = this.#producers.get(key.text)
    return producer?.lease.generation === generation ? producer : undefined
  }

  /** Returns the error of a further run of the owner, or null if there is space for one. */
  fullFor (ownerId: string | null): Error | null {
    const { max, maxPerOwner } = this.#options
    if (maxPerOwner > 0 && ownerId !== null) {
      let own = 0
      for (const { key } of [...this.#producers.values(), ...this.#starting]) if (key.ownerId === ownerId) own++
      if (own >= maxPerOwner) return new TooManyUserRuns(maxPerOwner)
    }
    return max > 0 && this.#producers.size + this.#starting.size >= max ? new TooManyRuns(max) : null
  }

  /** Starts a run. Resolves with its producer, or with the state of the run that is joined instead. */
  async start (key: RunKey, factory: RunFactory, settings: RunSettings): Promise<Producer | RunState> {
    const { leaseMs } = this.#options
    const { ttlMs } = settings
    const token = createId()
    const starting = { key }
    this.#starting.add(starting)
    try {
      const { state, started } = await this.store.claim({ key, token, leaseMs, ttlMs, joinFinished: settings.ifFinished === 'join', settings: settings.text })
      if (!started) return state
      const producer = new Producer(this, { key, generation: state.generation, token, leaseMs, ttlMs }, settings, state)
      // An earlier run with this id was ended on another node, and its producer does not know it yet: nothing else would end its source.
      this.#producers.get(producer.key.text)?.end({ status: 'lost' })
      this.#producers.set(producer.key.text, producer)
      this.#telemetry.onRunStart()
      this.#onStart()
      // The node has begun to close meanwhile: the run is ended at once, so that its readers do not wait for the lease.
      if (this.isClosing) {
        await producer.end({ status: 'lost' })
        throw new Closed()
      }
      producer.produce(factory)
      return producer
    } finally {
      this.#starting.delete(starting)
    }
  }

  reserve (bytes: number): boolean {
    if (this.#bytes + bytes > this.#options.maxBytes) return false
    this.#bytes += bytes
    return true
  }

  ended (producer: Producer): void {
    this.#bytes -= producer.bytes
    const { status, reason, events } = producer.state
    this.#telemetry.onRunEnd(status as RunEnd, reason, events)
    if (this.#producers.get(producer.key.text) === producer) this.#producers.delete(producer.key.text)
    if (this.isEmpty) this.#onEnded?.()
  }

  /** Checks the time limits of all runs. */
  age (elapsedMs: number): void {
    for (const producer of [...this.#producers.values()]) producer.age(elapsedMs)
  }

  /** The runs have `runs.drainMs` to end, and are lost then. Resolves when all have ended. */
  drain (): Promise<void> {
    return (this.#draining ??= this.#drain())
  }

  async #drain (): Promise<void> {
    if (!this.isEmpty) {
      await new Promise<void>(resolve => {
        const timer = this.clock.after(this.#options.drainMs, resolve)
        this.#onEnded = () => {
          this.clock.cancel(timer)
          resolve()
        }
      })
    }
    this.isOver = true
    await Promise.all([...this.#producers.values()].map(producer => {
      producer.end({ status: 'lost' })
      return producer.finished
    }))
  }
}
