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

/** Where a reader stands: it has read up to these numbers. */
export interface Position {
  readonly epoch: number
  readonly seq: number
  readonly ephemerals: number
}

/** What has come of one kind, oldest first. */
export interface Stretch {
  readonly entries: readonly Entry[]
  /** Whether there may be more behind it. */
  readonly cut: boolean
}

/** What has come. */
export interface News {
  readonly logged: Stretch
  readonly ephemeral: Stretch
  /** Whether an entry is left out that Redis may not have been given by a node: `greet` tells. */
  readonly suspect: boolean
}

/** How far the commands of an epoch have been read. */
export interface Progress {
  /** 0 for none. */
  readonly epoch: number
  /** The newest command that has been read there. */
  readonly command: number
  /** When it was logged: the same number at another time is another command. */
  readonly commandTime: number
}

/** Where the log stands. */
export interface Place {
  /** When this life of the log began, in milliseconds. */
  readonly epoch: number
  /** One more than the newest when there is none. */
  readonly oldest: number
  readonly newest: number
  readonly ephemerals: number
  /** Redis's clock, in milliseconds. */
  readonly now: number
  /** When the entry that was asked about was logged, and the newest; null when there is none. */
  readonly askedTime: number | null
  readonly newestTime: number | null
  /** Why this epoch was begun. */
  readonly why: string
  /** The number of the newest command. */
  readonly command: number
  /** When it was logged, by Redis's clock, in milliseconds; 0 when there is none. */
  readonly commandTime: number
  /** The epoch before this one, and the most that a node is known to have read of it. */
  readonly previous: Progress
}

/** A message on its way to Redis. */
export interface Outgoing {
  readonly message: OutgoingMessage
  /** Unique to this publish: by it the writer knows its own when it comes back. */
  readonly nonce: string
}

export interface Batch {
  /** Grows; a batch that is sent again keeps its number. */
  readonly number: number
  /** Time left, in milliseconds, after which it must not be appended any more. */
  remainingMs (): number
  readonly items: readonly Outgoing[]
}

/** What became of a batch: its place, or null when it came too late and nothing was appended. */
export type Appended = { epoch: number, first: number } | null

/** A writer whose reply was lost comes back within its publish timeout, which is at most a minute. */
const WRITER_MS = 300_000
/** The slowest link on which a batch is appended before its connection is given up: 64 KB/s. */
const APPEND_BYTES_PER_MS = 64
/** Ephemeral messages stay only until every node has read them. */
const EPHEMERAL_HISTORY: History = { maxEvents: 1_000, maxAgeMs: 10_000, maxBytes: 4 * 1024 * 1024 }
const NOTHING: Stretch = { entries: [], cut: false }

/** The log as Redis keeps it: two streams, of logged and of ephemeral messages, and what is known of them and of each writer. */
export class RedisStore {
  readonly writerId: string
  readonly #meta: string
  readonly #log: string
  readonly #ephemeral: string
  readonly #writer: string
  readonly #claims: string
  readonly #clock: ServerClock
  readonly #replyTimeoutMs: number
  /** How far this node has read. Redis keeps it when the epoch has ended: a node that missed a command there learns of it. */
  progress: Progress = { epoch: 0, command: 0, commandTime: 0 }

  /** @param keyPrefix becomes a hash tag: all keys are in one slot. */
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

  /** Claims the key in the epoch that this node reads. Rejects if Redis has another: earlier claims may be lost. */
  async claim (connection: Connection, key: string, ttlMs: number): Promise<boolean> {
    const reply = await CLAIM.run(connection, [this.#meta, this.#claims + key], [String(this.progress.epoch), String(Math.ceil(ttlMs))], this.#replyTimeoutMs).catch((cause: unknown) => {
      throw new BrokerUnavailable('could not be asked', { cause })
    })
    if (Number(reply) < 0) throw new BrokerUnavailable('has begun anew, and this node has not read the new one yet')
    return Number(reply) === 1
  }

  /**
   * Asks where the log stands, and begins it when there is none.
   * @param asked a sequence number whose time is wanted.
   * @param giveUp an epoch to replace by a new one, if it is still the current one.
   * @param writable whether to reject when Redis takes no writes (a replica, out of memory, …).
   */
  async greet (connection: Connection, { asked, giveUp, writable = false }: { asked: number, giveUp?: number, writable?: boolean }): Promise<Place> {
    const reply = texts(await GREET.run(connection, [this.#meta, this.#log, this.#ephemeral], [String(asked), giveUp === undefined ? '' : String(giveUp), writable ? '1' : '0', this.#progressText], this.#replyTimeoutMs))
    const [epoch, oldest, newest, ephemerals, now] = reply.map(Number) as [number, number, number, number, number]
    this.#clock.observe(now)
    const [askedTime, newestTime] = [reply[5]!, reply[6]!].map(time => time === '' ? null : Number(time)) as [number | null, number | null]
    const [command, commandTime, ...previous] = reply.slice(8).map(Number) as [number, number, number, number, number]
    return { epoch, oldest, newest, ephemerals, now, askedTime, newestTime, why: reply[7]!, command, commandTime, previous: { epoch: previous[0], command: previous[1], commandTime: previous[2] } }
  }

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
   * What comes after this position, waited for as long as `blockMs`; null when nothing came.
   * @param known up to where Redis has confirmed that entries were given by nodes, whatever they look like.
   */
  async follow (connection: Connection, { epoch, seq, ephemerals }: Position, known: Pick<Place, 'newest' | 'ephemerals'>, portion: ReadSize, blockMs: number): Promise<News | null> {
    // To block for 0 would be for ever.
    const block = blockMs === 0 ? [] : ['BLOCK', String(blockMs)]
    const { count } = portion
    const reply = await portion.read(connection, ['XREAD', 'COUNT', String(count), ...block, 'STREAMS', this.#log, this.#ephemeral, `${epoch}-${seq}`, `${epoch}-${ephemerals}`], blockMs, this.#replyTimeoutMs)
    if (reply === null) return null
    const news = { logged: NOTHING, ephemeral: NOTHING, suspect: false }
    for (const [key, raw] of reply as [unknown, unknown[]][]) {
      // A prefix of the client's own may stand before ours.
      const ephemeral = String(key).endsWith(this.#ephemeral)
      const last = ephemeral ? known.ephemerals : known.newest
      const decoded = raw.map(item => decodeEntry(item, ephemeral))
      const suspect = decoded.findIndex(entry => entry.epoch !== epoch || (entry.message === null && entry.number > last))
      if (suspect >= 0) news.suspect = true
      news[ephemeral ? 'ephemeral' : 'logged'] = { entries: suspect < 0 ? decoded : decoded.slice(0, suspect), cut: suspect >= 0 || raw.length >= count }
    }
    return news
  }

  /** The entries of these numbers that are there, newest first; as many as the portion has room for. */
  async range (connection: Connection, epoch: number, from: number, to: number, portion: ReadSize): Promise<Entry[]> {
    const reply = await portion.read(connection, ['XREVRANGE', this.#log, `${epoch}-${to}`, `${epoch}-${from}`, 'COUNT', String(portion.count)], 0, this.#replyTimeoutMs)
    return (reply as unknown[]).map(item => decodeEntry(item, false))
  }

  /** One argument: to a client without a password, Redis answers commands of more than ten words with a protocol error. */
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
