import { FrameCache } from '../delivery/frame-cache.js'
import { Flusher } from '../delivery/flusher.js'
import { ReplayScheduler } from '../delivery/replay-scheduler.js'
import type { MessageOptions } from '../events/message.js'
import type { Broker } from '../log/broker.js'
import type { EventLog } from '../log/event-log.js'
import type { Audience, Receiver } from '../subscriptions/audience.js'
import type { Holder, Authorization } from '../subscriptions/authorization.js'
import type { Log } from '../util/logger.js'
import { MemoryBudget } from '../util/memory-budget.js'
import { Chunk, ChunkMemo } from '../wire/chunk.js'
import { KEEP_ALIVE } from './control-frames.js'
import type { Counted } from './statistics.js'
import { tickMsFor, TimingWheel, type TimingOptions } from './timing-wheel.js'

/** The options that connections are held to. */
export interface ConnectionOptions extends MessageOptions, TimingOptions {
  readonly outboxBytes: number
  readonly maxQueuedBytes: number
  readonly keepAlive: boolean
  readonly maxReplayEvents: number
  readonly maxReplayBytes: number
  readonly maxConcurrentReplays: number
  readonly flush: 'immediate' | { readonly intervalMs: number }
}

/** The rest of the node, as far as connections use it. */
interface Surroundings {
  readonly options: ConnectionOptions
  readonly log: Log
  readonly broker: Broker
  readonly eventLog: EventLog
  readonly audience: Audience<Receiver>
  readonly subscriptions: Authorization<Holder>
  /** A connection has ended. */
  onEnd (connection: Counted, reason: string): void
}

/**
 * What the connections of a node share: clock, writing, reading of the log, and the account of what waits. A class: an
 * object literal is a dictionary to the engine, which each event would look things up in, for each connection.
 */
export class ConnectionContext {
  readonly options: ConnectionOptions
  /** Beside `options`, because each event reads it. */
  readonly outboxBytes: number
  readonly eventLog: EventLog
  readonly budget: MemoryBudget
  readonly flusher: Flusher
  // A source goes on when what it has made is written: an interval would be its speed.
  readonly sourceFlusher = new Flusher(0)
  readonly wheel: TimingWheel
  readonly audience: Audience<Receiver>
  readonly replays: ReplayScheduler
  /** What has lately been read from the log. */
  readonly frames = new FrameCache()
  readonly subscriptions: Authorization<Holder>
  readonly log: Log
  readonly keepAliveChunk = new Chunk(KEEP_ALIVE)
  /** First blocks, and blocks that tell a cursor: the same for all connections that open, or are silent, while nothing is published. */
  readonly greetings = new ChunkMemo()
  readonly cursors = new ChunkMemo()
  readonly onEnd: (connection: Counted, reason: string) => void

  constructor ({ options, log, broker, eventLog, audience, subscriptions, onEnd }: Surroundings) {
    this.options = options
    this.outboxBytes = options.outboxBytes
    this.eventLog = eventLog
    this.budget = new MemoryBudget(options.maxQueuedBytes)
    this.flusher = new Flusher(options.flush === 'immediate' ? 0 : options.flush.intervalMs)
    this.wheel = new TimingWheel(tickMsFor(options), options.clock)
    this.audience = audience
    this.replays = new ReplayScheduler(broker, options.maxConcurrentReplays, log)
    this.subscriptions = subscriptions
    this.log = log
    this.onEnd = onEnd
  }
}
