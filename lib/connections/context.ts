import type { Broker } from '../log/broker.js'
import type { Target } from '../events/target.js'
import { MemoryBudget } from '../util/memory-budget.js'
import { ReplayScheduler } from '../delivery/replay-scheduler.js'
import { Chunk, ChunkMemo } from '../wire/chunk.js'
import type { ConnectionHost, SSEConnection } from './connection.js'
import { UnknownConnection } from '../errors.js'
import { encodeComment } from '../wire/encoding.js'
import { Flusher } from '../delivery/flusher.js'
import { FrameCache } from '../delivery/frame-cache.js'
import { Frame } from '../delivery/frame.js'
import { type Batch } from '../delivery/batch.js'
import type { Log } from '../util/logger.js'
import { composeMessage, type MessageOptions } from '../events/message.js'
import type { EventLog } from '../log/event-log.js'
import type { Registry } from '../subscriptions/registry.js'
import type { Audience } from '../subscriptions/audience.js'
import type { Subscriptions } from '../subscriptions/subscriptions.js'
import { assertSubscription } from '../events/topic.js'
import { quote } from '../util/quote.js'
import { TimingWheel } from './timing-wheel.js'
import { WallClock } from './wall-clock.js'
import type { EventInput } from '../events/event-input.js'

/** The options that connections are held to. */
export interface ConnectionOptions extends MessageOptions {
  readonly outboxBytes: number
  readonly maxQueuedBytes: number
  readonly keepAlive: boolean
  readonly keepAliveIntervalMs: number
  readonly stallTimeoutMs: number
  readonly maxConnectionAgeMs: number
  readonly maxReplayEvents: number
  readonly maxReplayBytes: number
  readonly maxConcurrentReplays: number
  readonly drainMs: number
  readonly flush: 'immediate' | { readonly intervalMs: number }
}

/** What the host asks of the rest of its node. */
export interface ContextParts {
  readonly options: ConnectionOptions
  readonly log: Log
  readonly broker: Broker
  readonly eventLog: EventLog
  readonly registry: Registry<SSEConnection>
  readonly audience: Audience<SSEConnection>
  readonly subscriptions: Subscriptions<SSEConnection>
  /** A connection has ended. */
  ended (connection: SSEConnection, reason: string): void
}

/**
 * What the connections of a node share: clock, writing, reading of the log, and the account of what waits. A class: an
 * object literal with getters is a dictionary to the engine, which each event would look things up in, for each connection.
 */
export class ConnectionContext implements ConnectionHost {
  readonly outboxBytes: number
  readonly budget: MemoryBudget
  readonly newest: readonly number[]
  readonly #eventLog: EventLog
  readonly #flusher: Flusher
  // A source goes on when what it has made is written: an interval would be its speed.
  readonly #sources = new Flusher(0)
  readonly #wheel: TimingWheel
  readonly #catchUp: ReplayScheduler
  readonly frames = new FrameCache()
  readonly log: Log
  readonly keepAlive: boolean
  readonly keepAliveIntervalMs: number
  readonly keepAliveChunk = new Chunk(encodeComment('keep-alive'))
  readonly greetings = new ChunkMemo()
  readonly places = new ChunkMemo()
  readonly stallTimeoutMs: number
  readonly maxConnectionAgeMs: number
  readonly maxReplayEvents: number
  readonly maxReplayBytes: number
  readonly drainMs: number
  readonly #parts: ContextParts

  constructor (parts: ContextParts) {
    const { options, log, broker, eventLog } = parts
    this.#parts = parts
    this.#eventLog = eventLog
    this.log = log
    this.outboxBytes = options.outboxBytes
    this.budget = new MemoryBudget(options.maxQueuedBytes)
    this.newest = eventLog.newest
    this.keepAlive = options.keepAlive
    this.keepAliveIntervalMs = options.keepAliveIntervalMs
    this.stallTimeoutMs = options.stallTimeoutMs
    this.maxConnectionAgeMs = options.maxConnectionAgeMs
    this.maxReplayEvents = options.maxReplayEvents
    this.maxReplayBytes = options.maxReplayBytes
    this.drainMs = options.drainMs
    this.#flusher = new Flusher(options.flush === 'immediate' ? 0 : options.flush.intervalMs)
    this.#catchUp = new ReplayScheduler(broker, options.maxConcurrentReplays, {
      stuck: err => log.warn({ err }, 'The event log cannot be read; connections that lag wait'),
      free: () => log.info({}, 'No connection waits for the event log any more')
    })
    this.#wheel = new TimingWheel(tickMsFor(options), now)
    const clock = new WallClock(this.#wheel, now(), () => { for (const connection of parts.registry.all()) connection.onClockAhead() })
    this.#wheel.schedule(clock, now())
  }

  /** Lets time pass: keep-alives, stalls and ends are seen from here on. */
  start (): void {
    this.#wheel.start()
  }

  stop (): void {
    this.#wheel.stop()
  }

  get epoch (): string {
    return this.#eventLog.epoch
  }

  get shared (): boolean {
    return this.#eventLog.shared
  }

  get position (): number {
    return this.#eventLog.position
  }

  get rootBatch (): Batch {
    return this.#flusher.root
  }

  now (): number {
    return now()
  }

  get lately (): number {
    return this.#wheel.now
  }

  get ran (): number {
    return this.#wheel.ran
  }

  mark (connection: SSEConnection): void {
    if (connection.managed) this.#flusher.mark(connection)
    else this.#sources.mark(connection)
  }

  schedule (connection: SSEConnection, dueAt: number): void {
    this.#wheel.schedule(connection, dueAt)
  }

  wantsPage (connection: SSEConnection): void {
    this.#catchUp.want(connection)
  }

  frameOf ({ clientId }: SSEConnection, event: EventInput): Frame {
    const message = composeMessage(event, { ephemeral: true }, this.#parts.options)
    return Frame.ofMessage({ ...message, target: { clientIds: [clientId] } }, this.epoch)
  }

  isTarget (connection: SSEConnection, target: Target): boolean {
    return this.#parts.audience.includes(connection, target)
  }

  covers (connection: SSEConnection, topic: string): boolean {
    return this.#parts.audience.hears(connection, topic)
  }

  async addSubscription (clientId: string, subscription: string): Promise<void> {
    assertSubscription(subscription)
    ownedHere(clientId, await this.#parts.subscriptions.add(clientId, subscription))
  }

  async removeSubscription (clientId: string, subscription: string): Promise<boolean> {
    assertSubscription(subscription)
    return ownedHere(clientId, this.#parts.subscriptions.remove(clientId, subscription))
  }

  ended (connection: SSEConnection, reason: string): void {
    this.#wheel.cancel(connection)
    this.#parts.ended(connection, reason)
  }
}

function ownedHere<R> (clientId: string, value: R | null): R {
  if (value === null) throw new UnknownConnection(quote(clientId))
  return value
}

/** In whole milliseconds: each connection notes when it was written to, and a fraction would take an object of its own. */
function now (): number {
  return Math.floor(performance.now())
}

const TICKS_PER_INTERVAL = 10
// The end of somebody's rights is kept to half a second, twice this.
const MAX_TICK_MS = 250

/** A fraction of the shortest interval that anything is timed by. */
function tickMsFor (options: ConnectionOptions): number {
  const intervals = [options.keepAliveIntervalMs, options.stallTimeoutMs, options.maxConnectionAgeMs, options.drainMs].filter(ms => ms > 0)
  return Math.min(MAX_TICK_MS, Math.max(10, Math.floor(Math.min(...intervals) / TICKS_PER_INTERVAL)))
}
