import type { EventPriority } from '../events/event-rules.js'
import type { Message, OutgoingMessage } from '../events/message.js'

/**
 * Why something after a client's cursor is not in the log any more.
 * - `malformed`: the cursor is not one of ours.
 * - `epoch`: it belongs to another life of the log (a restart, a wiped store).
 * - `unknown`: it names a place the log has not reached.
 * - `trimmed`: the events after it have left the history.
 * - `limit`: more lies after it than `maxReplayEvents` or `maxReplayBytes` allow.
 */
export type GapReason = 'malformed' | 'epoch' | 'unknown' | 'trimmed' | 'limit'

/** What became of a publish. */
export interface Published {
  /** Its place in the log, null when it has none. */
  readonly seq: number | null
  /** What `deliver` has answered on this node; 0 when it was not delivered here. */
  readonly delivered: number
}

export interface Sink {
  /**
   * Messages in log order, one at a time. Called once for each message on each node, the node's own included. Returns how
   * many connections of this node have got it. Never throws.
   */
  deliver (message: Message): number
  /**
   * The log lost its continuity: what connections hold of it is void. `epoch` and `position` already tell the new place. Throws when the epoch cannot be one.
   * @param error what has happened to the log, for the application's log.
   * @param commandsKept whether it is known that no logged message of channel `node` is lost. `true`: none is. `false`: one may
   * be, or there was an epoch that this node has not read; the node ends the streams of all users, who come back with today's
   * rights. Absent: as `false`; after an `epoch`, nodes compare what they had read of the old one, and end the streams if it differs.
   */
  gap (reason: GapReason, error?: Error, commandsKept?: boolean): void
  /**
   * Whether the log can be published to and read as it grows, and why not. Told when it, or the reason, changes. While it is `down`,
   * `deliver` may pause; what was missed comes later, or a `gap` does.
   */
  state (state: 'up' | 'down', error?: Error): void
}

export interface History {
  /** Messages kept at most. */
  readonly maxEvents: number
  /** Age in milliseconds after which a message is not replayed any more. */
  readonly maxAgeMs: number
  /** Bytes kept at most: data, names and the ids in targets. */
  readonly maxBytes: number
}

export interface ReadRequest {
  readonly epoch: string
  /** Messages after this sequence number. */
  readonly after: number
  /** Only this lane. */
  readonly priority: EventPriority
  /** Messages at most. */
  readonly limit: number
}

export interface Page {
  /** Perhaps none, though there are some further on: a read looks at a bounded stretch of the log. */
  readonly messages: readonly Message[]
  /** The lane has been read up to and including this sequence number. */
  readonly next: number
  /** Set when something after `after` is gone; then there are no messages. */
  readonly gap?: GapReason
}

/**
 * The ordered, bounded log that all nodes share, and the fan-out from it. Promises every implementation keeps
 * (`fastify-sse-manager/testing` checks most of them):
 *
 * - `deliver` is called once for each message on each node, in log order, own messages included, and is never re-entered;
 *   a publish from inside it is delivered after it.
 * - Sequence numbers grow by one for each logged message within an epoch.
 * - Messages of channel `node` are delivered on each node that reads the log, however many ephemeral messages are published.
 * - `publish` answers once the message is logged, or handed on when it is ephemeral, and this node has delivered it: at once,
 *   or with a promise. In a bounded time it rejects with SSE_ERR_BROKER_UNAVAILABLE when the log cannot be reached. It may
 *   answer before the delivery when the log has lost its continuity in between, or this node is late.
 * - `read` leaves out messages that a newer one in the log replaces: of those with the same key and target, and no filter, only the newest is read.
 * - `read` after a cursor of another epoch, one the log has not reached, or one that has been trimmed away reports a gap.
 * - On a shared log another node may be ahead of this one, and so may a client that comes from there. `read` after a place that the log has reached
 *   and this node has not is no gap: it waits until `position` has come so far, and rejects after some seconds when it has not; it is called again
 *   then. `unknown` is reported only when the log itself ends before that place, and `epoch` when the log has another one. The same before this node has reached the log for the first time.
 * - Of all calls of `claim` with one key, on all nodes, one resolves with true within `ttlMs` and one epoch. It rejects with
 *   SSE_ERR_BROKER_UNAVAILABLE when that cannot be known: the log is not reached, or has another epoch than `epoch`.
 * - After `close` every call throws, or rejects with, SSE_ERR_CLOSED, and nothing is delivered any more.
 *
 * An error with a code is one like `Object.assign(new Error('…'), { code: 'SSE_ERR_BROKER_UNAVAILABLE', statusCode: 503 })`. Any
 * other that a publish rejects with reaches the application as SSE_ERR_BROKER_UNAVAILABLE, with itself as the cause.
 */
export interface Broker {
  /** Whether other nodes share this log. */
  readonly shared: boolean
  /** The life of the log: `[A-Za-z0-9_-]{1,32}`. A log that was wiped, or has lost something it had told, gets another. */
  readonly epoch: string
  /** Sequence number of the newest logged message that has come to this node, the one that is being delivered included; 0 in an empty log. */
  readonly position: number
  /**
   * Begins to deliver, at the newest message, after it has called `sink.state('up')`: until then the node counts as degraded.
   * Called once. Rejects when the log cannot be reached.
   * @param now the node's time, in milliseconds since the epoch; absent: `Date.now`. A log in memory counts ages and `ttlMs` by it, which tests move.
   */
  open (sink: Sink, history: History, now?: () => number): Promise<void>
  /** @param message the broker's own from here on: it may keep it, and add to it. Each publish gives one of its own. */
  publish (message: OutgoingMessage): Published | Promise<Published>
  read (request: ReadRequest): Promise<Page>
  /** Whether nobody on any node has claimed this key within the time that the first to do so asked for. */
  claim (key: string, ttlMs: number): Promise<boolean>
  close (): Promise<void>
}
