import { FrameCache } from '../delivery/frame-cache.js'
import { Flusher } from '../delivery/flusher.js'
import { ReplayScheduler } from '../delivery/replay-scheduler.js'
import type { MessageOptions } from '../events/message.js'
import type { Broker } from '../log/broker.js'
import type { EventLog } from '../log/event-log.js'
import type { Audience, Receiver } from '../subscriptions/audience.js'
import type { Holder, Authorization } from '../subscriptions/authorization.js'
import { GroupedWarning } from '../util/grouped-warning.js'
import type { Log } from '../util/logger.js'
import { MemoryBudget } from '../util/memory-budget.js'
import { Chunk, ChunkMemo } from '../wire/chunk.js'
import { KEEP_ALIVE } from './control-frames.js'
import { Greetings } from './greetings.js'
import { SnapshotLoads } from './snapshot-loads.js'
import type { Counted } from './statistics.js'
import type { Telemetry } from '../diagnostics/telemetry.js'
import { tickMsFor, TimingWheel, type TimingOptions } from './timing-wheel.js'

/** The options that concern connections; see `SSEOptions`. */
export interface ConnectionOptions extends MessageOptions, TimingOptions {
  readonly outboxBytes: number
  readonly maxQueuedBytes: number
  readonly keepAlive: boolean | 'event'
  readonly maxReplayEvents: number
  readonly maxReplayBytes: number
  readonly maxConcurrentReplays: number
  readonly flush: 'immediate' | { readonly intervalMs: number }
}

/** The parts of the node that connections use. */
interface Surroundings {
  readonly options: ConnectionOptions
  readonly log: Log
  readonly telemetry: Telemetry
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
  readonly snapshotLoads: SnapshotLoads
  readonly log: Log
  readonly stalled: GroupedWarning
  readonly unanswered: GroupedWarning
  readonly telemetry: Telemetry
  readonly keepAliveChunk = new Chunk(KEEP_ALIVE)
  readonly greetings: Greetings
  /** Cursor blocks of idle connections. They are equal for all connections until the next event is published. */
  readonly cursors = new ChunkMemo()
  readonly onEnd: (connection: Counted, reason: string) => void

  constructor ({ options, log, telemetry, broker, eventLog, audience, subscriptions, onEnd }: Surroundings) {
    this.options = options
    this.outboxBytes = options.outboxBytes
    this.eventLog = eventLog
    this.budget = new MemoryBudget(options.maxQueuedBytes)
    this.flusher = new Flusher(options.flush === 'immediate' ? 0 : options.flush.intervalMs, undefined, telemetry)
    this.wheel = new TimingWheel(tickMsFor(options), options.clock)
    this.audience = audience
    this.replays = new ReplayScheduler(broker, options.maxConcurrentReplays, log)
    this.subscriptions = subscriptions
    this.snapshotLoads = new SnapshotLoads(options, this.budget, eventLog, log)
    this.log = log
    this.stalled = new GroupedWarning(log, options.clock, 'Clients were disconnected that had read nothing for stallTimeoutMs')
    this.unanswered = new GroupedWarning(log, options.clock, 'Streams were closed for which authorizeSubscription had not answered within stallTimeoutMs')
    this.telemetry = telemetry
    this.greetings = new Greetings(options.keepAlive === false ? null : options.keepAliveIntervalMs)
    this.onEnd = onEnd
  }

  /** Stops the timers of all connections, which have ended. */
  close (): void {
    this.wheel.stop()
    this.stalled.flush()
    this.unanswered.flush()
  }
}
