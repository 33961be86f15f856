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

/** The options that concern connections; see `SSEOptions`. */
export interface ConnectionOptions extends MessageOptions, TimingOptions {
  readonly outboxBytes: number
  readonly maxQueuedBytes: number
  readonly keepAlive: boolean
  readonly maxReplayEvents: number
  readonly maxReplayBytes: number
  readonly maxConcurrentReplays: number
  readonly flush: 'immediate' | { readonly intervalMs: number }
}

/** The parts of the node that connections use. */
interface Surroundings {
  readonly options: ConnectionOptions
  readonly log: Log
  readonly broker: Broker
  readonly eventLog: EventLog
  readonly audience: Audience<Receiver>
  readonly subscriptions: Authorization<Holder>
  /** Handles the end of a connection. */
  onEnd (connection: Counted, reason: string): void
}

/**
 * The objects that all connections of a node share. It is a class, because V8 would store the object literal as a dictionary, which
 * makes each read slow.
 */
export class ConnectionContext {
  readonly options: ConnectionOptions
  /** The option `outboxBytes`. A property of its own, because each event reads it. */
  readonly outboxBytes: number
  readonly eventLog: EventLog
  readonly budget: MemoryBudget
  readonly flusher: Flusher
  /** Flusher of connections with a source. It has no interval: a source waits for each write, so an interval would limit its rate. */
  readonly sourceFlusher = new Flusher(0)
  readonly wheel: TimingWheel
  readonly audience: Audience<Receiver>
  readonly replays: ReplayScheduler
  /** Frames of messages that were recently read from the log. */
  readonly frames = new FrameCache()
  readonly subscriptions: Authorization<Holder>
  readonly log: Log
  readonly keepAliveChunk = new Chunk(KEEP_ALIVE)
  /** First blocks, and cursor blocks of idle connections. They are equal for all connections until the next event is published. */
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
