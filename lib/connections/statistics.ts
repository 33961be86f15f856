import type { GapReason } from '../events/control.js'
import type { DropReason, StartResult } from '../diagnostics/channels.js'
import type { ReportedStream, Telemetry } from '../diagnostics/telemetry.js'
import type { Broker, LogSize } from '../log/broker.js'
import type { RunStatus } from '../log/run-store.js'
import type { Member, Registry } from '../subscriptions/registry.js'
import { portions } from '../util/long-list.js'

/** Number of connections that `readInTurns()` visits in one turn of the event loop. */
const VISITED_PER_TURN = 1_000

/** Counters of one connection, returned by `connection.stats()`. */
export interface ConnectionStats {
  /** Number of events written to the client, including replayed events. */
  readonly sentEvents: number
  /** Number of ephemeral events that were dropped because the client was too slow. */
  readonly droppedEvents: number
  /**
   * Bytes that wait for the client, in this package and in Node's own queue. Buffers of the kernel are not counted. Each waiting event
   * counts with its text, its target, its key and 400 bytes.
   */
  readonly queuedBytes: number
  /** Whether the client reads older events from the log, waits for its snapshot, or waits until this node reaches its cursor. */
  readonly lagging: boolean
}

/** Counters of one node, returned by `stats()`. Totals start at 0 with the manager. */
export interface ManagerStats {
  /** Number of open streams, including streams of `reply.sse(source)`. */
  readonly connections: number
  /** Number of distinct users with an open stream. */
  readonly users: number
  /** Number of distinct topics and patterns that connections hold. */
  readonly subscriptions: number
  /** Total number of messages delivered on this node. A message counts once, for any number of connections. */
  readonly messages: number
  /** Total number of deliveries: one for each message and connection. */
  readonly delivered: number
  /** Total number of ephemeral events that were dropped for slow clients. */
  readonly dropped: number
  /** Number of connections that read older events from the log, wait for their snapshot, or wait until this node reaches their cursor. */
  readonly lagging: number
  /** Bytes that wait for slow clients, without buffers of the kernel. The sum of `queuedBytes` of all connections. */
  readonly queuedBytes: number
  /** Total number of ended streams by close reason. After 64 distinct reasons, further reasons of the application count as `other`. */
  readonly closed: Readonly<Record<string, number>>
  /** Total number of admitted streams: the open ones, and the sum of `closed`. */
  readonly opened: number
  /** Total number of events that this node has published. */
  readonly published: number
  /** Total number of events that connections have read from the log, because their clients had resumed or were too slow. */
  readonly replayed: number
  /** Total number of refused requests by error code; `other` for errors without a code of this package. A request counts once. */
  readonly refused: Readonly<Record<string, number>>
  /**
   * Total number of starts of managed streams and of streams of runs. `fresh`: the client had no cursor. `resumed`: it has missed nothing.
   * `gap`: it has missed events.
   */
  readonly resumes: Readonly<Record<StartResult, number>>
  /** Total number of gaps by reason, at the start of streams and later. */
  readonly gaps: Readonly<Record<GapReason, number>>
  /** `dropped` by the bound that was reached: `outboxBytes` of the client, or `maxQueuedBytes` of the node. */
  readonly droppedBy: Readonly<Record<DropReason, number>>
  /** Runs whose source this node reads: number of those that are running, and total number of those that have ended, by status. */
  readonly runs: Readonly<Record<RunStatus, number>>
  /** The events that this node keeps in memory for replay; null if the broker does not tell. */
  readonly log: LogSize | null
}

/** A connection whose counters are summed. */
export interface Counted extends Member, ReportedStream {
  /** Returns the counters of the connection. */
  stats (): ConnectionStats
}

/** The counters of the dispatcher. */
interface Counters {
  readonly messages: number
  readonly deliveries: number
}

/** What is summed over the connections. */
type Waiting = Pick<ManagerStats, 'lagging' | 'queuedBytes'>

/** Sums the counters of this node and of its connections. @internal */
export class Statistics {
  readonly #registry: Registry<Counted>
  readonly #counters: Counters
  readonly #telemetry: Telemetry
  readonly #broker: Pick<Broker, 'size'>

  constructor (registry: Registry<Counted>, counters: Counters, telemetry: Telemetry, broker: Pick<Broker, 'size'>) {
    this.#registry = registry
    this.#counters = counters
    this.#telemetry = telemetry
    this.#broker = broker
  }

  /** Returns the current counters. Visits each connection. */
  read (): ManagerStats {
    const waiting = { lagging: 0, queuedBytes: 0 }
    for (const connection of this.#registry.all()) addTo(waiting, connection)
    return this.#with(waiting)
  }

  /** The same in several turns of the event loop. */
  async readInTurns (): Promise<ManagerStats> {
    const waiting = { lagging: 0, queuedBytes: 0 }
    for await (const portion of portions(this.#registry.all(), VISITED_PER_TURN)) for (const connection of portion) addTo(waiting, connection)
    return this.#with(waiting)
  }

  #with ({ lagging, queuedBytes }: Waiting): ManagerStats {
    const { size: connections, users, subscriptions } = this.#registry
    const { messages, deliveries: delivered } = this.#counters
    const { opened, published, replayed, closed, refused, resumes, gaps, dropped, runs } = this.#telemetry
    return {
      connections,
      users,
      subscriptions,
      messages,
      delivered,
      dropped: dropped.outbox + dropped.memory,
      lagging,
      queuedBytes,
      closed: closed.read(),
      opened,
      published,
      replayed,
      refused: refused.read(),
      resumes: { ...resumes },
      gaps: { ...gaps },
      droppedBy: { ...dropped },
      runs: { ...runs },
      log: this.#broker.size ?? null
    }
  }
}

function addTo (waiting: { -readonly [N in keyof Waiting]: Waiting[N] }, connection: Counted): void {
  const { lagging, queuedBytes } = connection.stats()
  if (lagging) waiting.lagging++
  waiting.queuedBytes += queuedBytes
}
