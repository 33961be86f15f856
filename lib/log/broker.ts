import type { GapReason } from '../events/control.js'
import type { EventPriority } from '../events/event-rules.js'
import type { Message, OutgoingMessage } from '../events/message.js'
import type { Interest } from './log-index.js'
import type { RunStore } from './run-store.js'

export type { GapReason }

/** The result of a publish. */
export interface Published {
  /** Sequence number in the log; null for an ephemeral message. */
  readonly seq: number | null
  /** Result of `deliver` on this node; 0 when the message was not delivered here before `publish` answered. */
  readonly delivered: number
}

/** Receives messages and changes of state from a broker. */
export interface Sink {
  /**
   * Delivers a message to the connections of this node and returns how many received it. The broker calls it once for each message
   * on each node, in log order, one at a time. That includes the node's own messages. Never throws.
   */
  deliver (message: Message): number
  /**
   * Reports lost continuity of the log: cursors and queued messages are invalid. `epoch` and `position` of the broker already have
   * the new values.
   * @param error what happened to the log; it is written to the application's log
   * @param commandsKept whether all logged messages of channel `node` were read. `true`: none is lost. `false`: one may be lost, or
   * this node has skipped an epoch. The node then ends the streams of all users, who reconnect with their current rights. Absent:
   * handled as `false`, except after the reason `epoch`. After `epoch`, nodes compare how far they had read the old epoch, and end
   * the streams only if they differ.
   * @throws SSE_ERR_INVALID_OPTION when the broker's `epoch` does not have the required form
   */
  gap (reason: GapReason, error?: Error, commandsKept?: boolean): void
  /**
   * Reports whether the log accepts messages and this node reads it without delay. The broker calls it when the state or the reason
   * changes. While the state is `down`, deliveries can pause. Missed messages follow later, or a `gap` follows.
   * @param error the reason for `down`
   */
  state (state: 'up' | 'down', error?: Error): void
}

/** The bounds of the history that a broker keeps for replay. */
export interface History {
  /** Maximum number of messages. */
  readonly maxEvents: number
  /** Age in milliseconds after which a message is no longer replayed. */
  readonly maxAgeMs: number
  /** Maximum size in bytes: data, event names, keys and the ids in targets, plus 16 KB for each filter. */
  readonly maxBytes: number
}

/** The end of a log. */
export interface LogPosition {
  /** Epoch of the log. */
  readonly epoch: string
  /** Sequence number of the newest logged message; 0 for an empty log. */
  readonly position: number
}

/** The size of the history that a node keeps in memory. */
export interface LogSize {
  /** Number of messages, with those between nodes. */
  readonly events: number
  /** Their memory in bytes, counted as `history.maxBytes` is. */
  readonly bytes: number
}

/** A log that is open for publishing only, see `Broker.openForPublishing`. */
export interface PublishingLog {
  /**
   * Asks the log for its end.
   * @throws SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   */
  position (): Promise<LogPosition>
}

/** A read of one priority of the log. */
export interface ReadRequest {
  /** Epoch of the cursor. */
  readonly epoch: string
  /** The read begins after this sequence number. */
  readonly after: number
  /** Only messages of this priority are read. */
  readonly priority: EventPriority
  /** Maximum number of messages. */
  readonly limit: number
  /**
   * The connection for which the log is read. A broker can leave out messages that this connection cannot receive, so that a read
   * costs no more than what it returns. A broker that ignores it is correct. Absent: all messages are returned.
   */
  readonly interest?: Interest
}

/** The result of a read. */
export interface Page {
  /** Messages in log order. Can be empty before the end of the log: each read scans a bounded part of it. */
  readonly messages: readonly Message[]
  /** Messages of the requested priority are read up to and including this sequence number. */
  readonly next: number
  /** Reason of a gap after `after`; absent without a gap. A page with a gap has no messages. */
  readonly gap?: GapReason
}

/**
 * The ordered and bounded event log that all nodes share, and the delivery of its messages. Every implementation guarantees the
 * following. The contract tests of `fastify-sse-manager/testing` check most of it.
 *
 * - `deliver` is called once for each message on each node, in log order, including the node's own messages. Calls never nest: a
 *   message that is published during a delivery is delivered after it.
 * - Within an epoch, sequence numbers grow by one for each logged message.
 * - Messages of channel `node` are delivered on each node that reads the log, however many ephemeral messages are published.
 * - `publish` answers when the message is logged, or sent if it is ephemeral, and this node has delivered it. It returns the result
 *   or a promise of it. If the log is unreachable, it rejects with SSE_ERR_BROKER_UNAVAILABLE within a bounded time. It can answer
 *   before the delivery if the log has lost its continuity meanwhile, or this node is late.
 * - `read` omits conflated messages: of messages with the same key and target and without a filter, it returns only the newest.
 * - `read` reports a gap for a cursor of another epoch, for a cursor ahead of the log, and for a trimmed cursor.
 * - On a shared log, another node can be ahead of this node. A client of that node then has a cursor that the log has reached and
 *   this node has not. `read` waits for `position` to reach the cursor, and rejects after a few seconds if it does not. The caller
 *   then reads again. `unknown` is reported only when the log itself ends before the cursor, and `epoch` when the log has another
 *   epoch. The same holds before this node has reached the log for the first time.
 * - Of all calls of `claim` with the same key on all nodes, one resolves with true within `ttlMs` and one epoch. `claim` rejects with
 *   SSE_ERR_BROKER_UNAVAILABLE if the result is unknown: the log is unreachable, or its epoch is not `epoch`.
 * - After `close`, every call throws or rejects with SSE_ERR_CLOSED, and no message is delivered.
 *
 * A broker outside this package creates such errors with `Object.assign(new Error('…'), { code: 'SSE_ERR_BROKER_UNAVAILABLE',
 * statusCode: 503 })`. If a publish rejects with any other error, the application receives SSE_ERR_BROKER_UNAVAILABLE with that
 * error as its `cause`.
 */
export interface Broker {
  /** Whether several nodes can share this log. */
  readonly shared: boolean
  /**
   * Identifies one continuous life of the log: 1 to 32 characters of `[A-Za-z0-9_-]`. A log that was wiped, or that lost messages it
   * had delivered, has a new epoch.
   */
  readonly epoch: string
  /** Sequence number of the newest logged message on this node, including a message that is being delivered; 0 for an empty log. */
  readonly position: number
  /** Keeps the runs of all nodes. Absent: a log that is not shared keeps them in memory; on a shared log, `startRun()` and the like reject. */
  readonly runs?: RunStore
  /** Messages that this node keeps in memory for `read`. Absent: `stats()` and the metrics do not have it. */
  readonly size?: LogSize | undefined
  /**
   * Calls `sink.state('up')`, then starts to deliver the messages that follow the newest one. The node is degraded until `up`.
   * Called once, and again only after it has rejected. Rejects when the log is unreachable.
   * @param now returns the time of this node in milliseconds since the Unix epoch. Absent: `Date.now`. A log in memory measures ages
   * and `ttlMs` by it, so that tests can control them.
   */
  open (sink: Sink, history: History, now?: () => number): Promise<void>
  /**
   * Opens the log for publishing only, instead of `open`: for `createPublisher()`, in processes without clients. Nothing is read,
   * delivered or kept in memory, and the process is no node. Called as `open` is.
   *
   * Afterwards, `publish` answers when the message is logged, or sent if it is ephemeral, with `delivered: 0`. `epoch` is that of the
   * last answer. `read`, `claim` and `position` are not used. Absent: `createPublisher()` rejects the broker.
   * @param history the bounds that this process applies to the log when it publishes
   */
  openForPublishing? (sink: Pick<Sink, 'state'>, history: History, now?: () => number): Promise<PublishingLog>
  /**
   * Appends a message to the log, or sends it if it is ephemeral.
   * @param message belongs to the broker from this call on: the broker can keep it and add properties. Each call has its own object.
   * @throws SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   */
  publish (message: OutgoingMessage): Published | Promise<Published>
  /**
   * Reads a page of one priority.
   * @throws SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   */
  read (request: ReadRequest): Promise<Page>
  /**
   * Returns whether the connection can receive no message after `after`. A client that reconnects is then live at once, without a read.
   * Return `true` only if this node has all messages after `after`, up to `position`, in memory: otherwise the client lacks events and
   * receives no `sse:gap`. Return `false` if the answer is not known, and after `close()`: the log is then read. It is also read if this
   * method throws, returns a promise or is absent.
   * @param after belongs to the current epoch, and is at most `position`
   */
  hasNothing? (after: number, interest: Interest): boolean
  /**
   * Claims a key for `ttlMs` milliseconds. Resolves with true for the first claim on any node, and with false until the time of that
   * claim has passed.
   * @throws SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   */
  claim (key: string, ttlMs: number): Promise<boolean>
  /** Stops deliveries and releases all resources. */
  close (): Promise<void>
}
