import type { History } from '../broker.js'
import { type OutgoingMessage, bytesOf } from '../../events/message.js'
import { BrokerUnavailable } from '../../errors.js'
import type { Connection } from './client.js'
import type { ServerClock } from './server-clock.js'
import { decodeEntry, headOf, type Entry } from './entry.js'
import type { ReadSize } from './read-size.js'
import { APPEND } from './scripts/append.js'
import { CLAIM } from './scripts/claim.js'
import { GREET } from './scripts/greet.js'

/** The position of a reader: it has read up to these numbers. */
export interface Position {
  /** Epoch of the log. */
  readonly epoch: number
  /** Number of the last logged entry. */
  readonly seq: number
  /** Number of the last ephemeral entry. */
  readonly ephemerals: number
}

/** The entries of one kind in a reply, oldest first. */
export interface Stretch {
  /** The entries. */
  readonly entries: readonly Entry[]
  /** Whether more entries may follow. */
  readonly cut: boolean
}

/** The reply to a read of both streams. */
export interface News {
  /** Logged entries. */
  readonly logged: Stretch
  /** Ephemeral entries. */
  readonly ephemeral: Stretch
  /** Whether entries were omitted because possibly no node has written them. The reader calls `greet` to find out. */
  readonly suspect: boolean
}

/** The newest command that was read in an epoch. */
export interface Progress {
  /** The epoch; 0 for none. */
  readonly epoch: number
  /** Number of the newest command that was read; 0 for none. */
  readonly command: number
  /** Time of logging of that command. A command with the same number and another time is a different command. */
  readonly commandTime: number
}

/** The state of the log in Redis. */
export interface LogState {
  /** Start of this epoch in milliseconds since the Unix epoch. */
  readonly epoch: number
  /** Number of the oldest logged entry; `newest + 1` for an empty log. */
  readonly oldest: number
  /** Number of the newest logged entry. */
  readonly newest: number
  /** Number of the newest ephemeral entry. */
  readonly ephemerals: number
  /** Redis's clock in milliseconds since the Unix epoch. */
  readonly now: number
  /** Time of logging of the requested entry; null if the log does not have it. */
  readonly askedTime: number | null
  /** Time of logging of the newest entry; null for an empty log. */
  readonly newestTime: number | null
  /** Why this epoch was started. */
  readonly why: string
  /** Number of the newest command; 0 for none. */
  readonly command: number
  /** Time of logging of the newest command, by Redis's clock, in milliseconds since the Unix epoch; 0 for none. */
  readonly commandTime: number
  /** The previous epoch, with the newest command that is known of it. */
  readonly previous: Progress
}

/** A message to send to Redis. */
export interface Outgoing {
  /** The message. */
  readonly message: OutgoingMessage
  /** Unique id of the publish. By it, the writer recognises its own message when it is read from the log. */
  readonly nonce: string
}

/** Messages that are appended together. */
export interface Batch {
  /** Number of the batch, increasing. A batch that is sent again keeps its number. */
  readonly number: number
  /** Returns the time in milliseconds after which the batch must not be appended. */
  remainingMs (): number
  /** The messages in order. */
  readonly items: readonly Outgoing[]
}

/** The position of an appended batch; null if it arrived too late and nothing was appended. */
export type Appended = { epoch: number, first: number } | null

/** Time for which Redis remembers a writer. A writer sends a batch again within its publish time-out of at most a minute. */
const WRITER_MS = 300_000
/** Slowest link on which a batch is appended before its connection times out: 64 KB/s. */
const APPEND_BYTES_PER_MS = 64
/** Bounds of the ephemeral stream: its messages are needed only until every node has read them. */
const EPHEMERAL_HISTORY: History = { maxEvents: 1_000, maxAgeMs: 10_000, maxBytes: 4 * 1024 * 1024 }
const NOTHING: Stretch = { entries: [], cut: false }

/** The log in Redis: one stream of logged messages, one of ephemeral messages, metadata, and the last batch of each writer. */
export class RedisStore {
  /** Id of this node as a writer. */
  readonly writerId: string
  readonly #meta: string
  readonly #log: string
  readonly #ephemeral: string
  readonly #writer: string
  readonly #claims: string
  readonly #clock: ServerClock
  readonly #replyTimeoutMs: number
  /** The newest command that this node has read. Redis stores it after the end of an epoch, so that nodes detect a missed command. */
  progress: Progress = { epoch: 0, command: 0, commandTime: 0 }

  /** @param keyPrefix used as a hash tag, so that all keys are in one slot */
  constructor (keyPrefix: string, writerId: string, clock: ServerClock, replyTimeoutMs: number) {
    this.writerId = writerId
    this.#clock = clock
    this.#meta = `{${keyPrefix}}:meta`
    this.#log = `{${keyPrefix}}:log`
    this.#ephemeral = `{${keyPrefix}}:ephemeral`
    this.#claims = `{${keyPrefix}}:claim:`
    this.#writer = `{${keyPrefix}}:writer:${writerId}`
    this.#replyTimeoutMs = replyTimeoutMs
  }

  /**
   * Claims a key in the epoch that this node reads. Rejects if Redis has another epoch: earlier claims may be lost.
   * @throws SSE_ERR_BROKER_UNAVAILABLE
   */
  async claim (connection: Connection, key: string, ttlMs: number): Promise<boolean> {
    const reply = await CLAIM.run(connection, [this.#meta, this.#claims + key], [String(this.progress.epoch), String(Math.ceil(ttlMs))], this.#replyTimeoutMs).catch((cause: unknown) => {
      throw new BrokerUnavailable('could not be reached to claim a key', { cause })
    })
    if (Number(reply) < 0) throw new BrokerUnavailable('has a new epoch that this node has not read yet')
    return Number(reply) === 1
  }

  /**
   * Resolves with the state of the log, and creates the log if there is none.
   * @param asked a sequence number whose time of logging is wanted
   * @param giveUp an epoch to replace by a new one, if it is still the current epoch
   * @param writable whether to reject if Redis accepts no writes (a replica, out of memory, …)
   */
  async greet (connection: Connection, { asked, giveUp, writable = false }: { asked: number, giveUp?: number, writable?: boolean }): Promise<LogState> {
    const reply = texts(await GREET.run(connection, [this.#meta, this.#log, this.#ephemeral], [String(asked), giveUp === undefined ? '' : String(giveUp), writable ? '1' : '0', this.#progressText], this.#replyTimeoutMs))
    const [epoch, oldest, newest, ephemerals, now] = reply.map(Number) as [number, number, number, number, number]
    this.#clock.observe(now)
    const [askedTime, newestTime] = [reply[5]!, reply[6]!].map(time => time === '' ? null : Number(time)) as [number | null, number | null]
    const [command, commandTime, ...previous] = reply.slice(8).map(Number) as [number, number, number, number, number]
    return { epoch, oldest, newest, ephemerals, now, askedTime, newestTime, why: reply[7]!, command, commandTime, previous: { epoch: previous[0], command: previous[1], commandTime: previous[2] } }
  }

  /** Appends a batch once, even if it is sent again. Resolves with null if Redis received it after its deadline. */
  async append (connection: Connection, { number, remainingMs, items }: Batch, history: History): Promise<Appended> {
    const deadline = Math.floor(this.#clock.now + remainingMs())
    let bytes = 0
    const args = [number, deadline, WRITER_MS, ...limits(history), ...limits(EPHEMERAL_HISTORY)].map(String)
    for (const { message, nonce } of items) {
      const { data, ephemeral, channel } = message
      const size = bytesOf(message)
      bytes += size
      args.push(ephemeral ? '0' : channel === 'node' ? '2' : '1', String(size), headOf(message, nonce), data)
    }
    args.push(this.#progressText)
    const reply = texts(await APPEND.run(connection, [this.#meta, this.#log, this.#ephemeral, this.#writer], args, this.#replyTimeoutMs + Math.ceil(bytes / APPEND_BYTES_PER_MS)))
    this.#clock.observe(Number(reply[1]))
    return reply[0] === 'late' ? null : { epoch: Number(reply[2]), first: Number(reply[3]) }
  }

  /**
   * Resolves with the entries after a position, or null if none arrive within `blockMs` milliseconds; 0 does not wait.
   * @param known numbers up to which Redis has confirmed that nodes wrote the entries, even if they cannot be decoded
   */
  async follow (connection: Connection, { epoch, seq, ephemerals }: Position, known: Pick<LogState, 'newest' | 'ephemerals'>, portion: ReadSize, blockMs: number): Promise<News | null> {
    // In Redis, BLOCK 0 blocks without a limit.
    const block = blockMs === 0 ? [] : ['BLOCK', String(blockMs)]
    const { count } = portion
    const reply = await portion.read(connection, ['XREAD', 'COUNT', String(count), ...block, 'STREAMS', this.#log, this.#ephemeral, `${epoch}-${seq}`, `${epoch}-${ephemerals}`], blockMs, this.#replyTimeoutMs)
    if (reply === null) return null
    const news = { logged: NOTHING, ephemeral: NOTHING, suspect: false }
    for (const [key, raw] of reply as [unknown, unknown[]][]) {
      // The application's client may add its own key prefix.
      const ephemeral = String(key).endsWith(this.#ephemeral)
      const last = ephemeral ? known.ephemerals : known.newest
      const decoded = raw.map(item => decodeEntry(item, ephemeral))
      const suspect = decoded.findIndex(entry => entry.epoch !== epoch || (entry.message === null && entry.number > last))
      if (suspect >= 0) news.suspect = true
      news[ephemeral ? 'ephemeral' : 'logged'] = { entries: suspect < 0 ? decoded : decoded.slice(0, suspect), cut: suspect >= 0 || raw.length >= count }
    }
    return news
  }

  /** Resolves with the entries from `from` to `to`, newest first, limited to the count of `portion`. */
  async range (connection: Connection, epoch: number, from: number, to: number, portion: ReadSize): Promise<Entry[]> {
    const reply = await portion.read(connection, ['XREVRANGE', this.#log, `${epoch}-${to}`, `${epoch}-${from}`, 'COUNT', String(portion.count)], 0, this.#replyTimeoutMs)
    return (reply as unknown[]).map(item => decodeEntry(item, false))
  }

  /** A single argument: Redis answers unauthenticated commands of more than ten arguments with a protocol error instead of NOAUTH. */
  get #progressText (): string {
    return `${this.progress.epoch}:${this.progress.command}:${this.progress.commandTime}`
  }
}

function limits ({ maxEvents, maxAgeMs, maxBytes }: History): number[] {
  return [maxEvents, maxAgeMs, maxBytes]
}

function texts (reply: unknown): string[] {
  return (reply as unknown[]).map(String)
}
