import { Type, type Static } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import type { History } from '../broker.js'
import { type Message, type OutgoingMessage, bytesOf } from '../../events/message.js'
import { BrokerUnavailable } from '../../errors.js'
import type { EventPriority } from '../../events/event.js'
import type { Connection } from './client.js'
import type { Portion } from './portion.js'
import { APPEND, GREET, NODES_AHEAD_MS } from './script.js'

/** A message as it stands in Redis. */
export interface Entry {
  /** Null when it is not of our making. */
  readonly message: Message | null
  /** See `Outgoing`. */
  readonly nonce: string
  readonly epoch: number
  /** When it was logged, by Redis's clock, in milliseconds; 0 when it is not of our making. */
  readonly time: number
  /** Its number among the logged, or among the ephemeral ones. */
  readonly number: number
  /** The newest number of the other kind when it was published. */
  readonly other: number
  /** The number of the newest command that was logged before it. */
  readonly command: number
}

/** Where a reader stands: it has read up to these numbers. */
export interface Position {
  readonly epoch: number
  readonly seq: number
  readonly ephemerals: number
  /** The id of what a node has told the others last. */
  readonly nodes: string
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
  /** What nodes have told each other, and the id of the last of that. */
  readonly told: readonly Message[]
  readonly nodes: string
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
  /** The id of what a node has told the others last. */
  readonly nodes: string
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

/** A node that has not read what others tell it for this long is taken for dead, and told anew when it is back. */
const NODES_MS = 15_000

/**
 * The log as Redis keeps it: two streams, of logged and of ephemeral messages, and what is known of them and of each writer.
 * A third, which needs no order with them, has what nodes tell each other: no flood of events pushes that out.
 */
export class RedisStore {
  readonly writerId: string
  readonly #meta: string
  readonly #log: string
  readonly #ephemeral: string
  readonly #nodes: string
  readonly #writer: string
  readonly #claims: string
  readonly #replyTimeoutMs: number
  /** How far Redis's clock is ahead of this one, as of its last answer. */
  #aheadMs = 0

  /** @param keyPrefix becomes a hash tag: all keys are in one slot. */
  constructor (keyPrefix: string, writerId: string, replyTimeoutMs: number) {
    this.writerId = writerId
    this.#meta = `{${keyPrefix}}:meta`
    this.#log = `{${keyPrefix}}:log`
    this.#ephemeral = `{${keyPrefix}}:ephemeral`
    this.#nodes = `{${keyPrefix}}:nodes`
    this.#claims = `{${keyPrefix}}:claim:`
    this.#writer = `{${keyPrefix}}:writer:${writerId}`
    this.#replyTimeoutMs = replyTimeoutMs
  }

  /** Sets the key unless it is set. */
  async claim (connection: Connection, key: string, ttlMs: number): Promise<boolean> {
    try {
      return await connection.send(['SET', this.#claims + key, '1', 'NX', 'PX', String(Math.ceil(ttlMs))], this.#replyTimeoutMs) !== null
    } catch (cause) {
      throw new BrokerUnavailable('could not be asked', { cause })
    }
  }

  /** A time of Redis's clock by this node's clock. */
  localTime (time: number): number {
    return time - this.#aheadMs
  }

  /**
   * Asks where the log stands, and begins it when there is none.
   * @param asked a sequence number whose time is wanted.
   * @param giveUp an epoch to replace by a new one, if it is still the current one.
   * @param writable whether to reject when Redis takes no writes (a replica, out of memory, …).
   */
  async greet (connection: Connection, { asked, giveUp, writable = false }: { asked: number, giveUp?: number, writable?: boolean }): Promise<Place> {
    const reply = texts(await GREET.run(connection, [this.#meta, this.#log, this.#ephemeral, this.#nodes], [String(asked), giveUp === undefined ? '' : String(giveUp), writable ? '1' : '0'], this.#replyTimeoutMs))
    const [epoch, oldest, newest, ephemerals, now] = reply.map(Number) as [number, number, number, number, number]
    this.#observe(now)
    const [askedTime, newestTime] = [reply[5]!, reply[6]!].map(time => time === '' ? null : Number(time)) as [number | null, number | null]
    return { epoch, oldest, newest, ephemerals, now, askedTime, newestTime, why: reply[7]!, nodes: reply[8]! }
  }

  async append (connection: Connection, { number, remainingMs, items }: Batch, history: History): Promise<Appended> {
    const deadline = Math.floor(Date.now() + this.#aheadMs + remainingMs())
    let bytes = 0
    const args = [number, deadline, WRITER_MS, ...limits(history), ...limits(EPHEMERAL_HISTORY)].map(String)
    for (const { message, nonce } of items) {
      const { data, ephemeral, channel } = message
      const size = bytesOf(message)
      bytes += size
      args.push(ephemeral ? '0' : channel === 'node' ? '2' : '1', String(size), headOf(message, nonce), data)
    }
    const reply = texts(await APPEND.run(connection, [this.#meta, this.#log, this.#ephemeral, this.#writer], args, this.#replyTimeoutMs + Math.ceil(bytes / APPEND_BYTES_PER_MS)))
    this.#observe(Number(reply[1]))
    return reply[0] === 'late' ? null : { epoch: Number(reply[2]), first: Number(reply[3]) }
  }

  /** Tells the other nodes something, once: a message of this kind is said again, or not missed. */
  async tell (connection: Connection, message: OutgoingMessage): Promise<void> {
    const oldest = Math.floor(Date.now() + this.#aheadMs - NODES_MS)
    try {
      await connection.send(['XADD', this.#nodes, 'MINID', '~', String(oldest), '*', 'h', headOf(message, ''), 'd', message.data], this.#replyTimeoutMs)
    } catch (cause) {
      throw new BrokerUnavailable('could not carry a message to the other nodes', { cause })
    }
  }

  /**
   * What comes after this position, waited for as long as `blockMs`; null when nothing came.
   * @param known up to where Redis has confirmed that entries were given by nodes, whatever they look like.
   */
  async follow (connection: Connection, { epoch, seq, ephemerals, nodes }: Position, known: Pick<Place, 'newest' | 'ephemerals'>, portion: Portion, blockMs: number): Promise<News | null> {
    // To block for 0 would be for ever.
    const block = blockMs === 0 ? [] : ['BLOCK', String(blockMs)]
    const { count } = portion
    const reply = await this.#read(connection, ['XREAD', 'COUNT', String(count), ...block, 'STREAMS', this.#nodes, this.#log, this.#ephemeral, nodes, `${epoch}-${seq}`, `${epoch}-${ephemerals}`], portion, blockMs)
    if (reply === null) return null
    const news = { logged: NOTHING, ephemeral: NOTHING, suspect: false, told: [] as Message[], nodes }
    for (const [key, raw] of reply as [unknown, unknown[]][]) {
      if (this.#isNodes(key)) {
        news.told = raw.map(told).filter(message => message !== null)
        news.nodes = String((raw as [unknown][]).at(-1)![0])
        if (timeOf(news.nodes) > Date.now() + this.#aheadMs + NODES_AHEAD_MS) news.suspect = true
        continue
      }
      // A prefix of the client's own may stand before ours.
      const ephemeral = String(key).endsWith(this.#ephemeral)
      const last = ephemeral ? known.ephemerals : known.newest
      const decoded = raw.map(item => decode(item, ephemeral))
      const suspect = decoded.findIndex(entry => entry.epoch !== epoch || (entry.message === null && entry.number > last))
      if (suspect >= 0) news.suspect = true
      news[ephemeral ? 'ephemeral' : 'logged'] = { entries: suspect < 0 ? decoded : decoded.slice(0, suspect), cut: suspect >= 0 || raw.length >= count }
    }
    return news
  }

  /** The entries of these numbers that are there, newest first; as many as the portion has room for. */
  async range (connection: Connection, epoch: number, from: number, to: number, portion: Portion): Promise<Entry[]> {
    const reply = await this.#read(connection, ['XREVRANGE', this.#log, `${epoch}-${to}`, `${epoch}-${from}`, 'COUNT', String(portion.count)], portion, 0)
    return (reply as unknown[]).map(item => decode(item, false))
  }

  /** Sends a read of a portion, which learns from it. */
  async #read (connection: Connection, command: readonly string[], portion: Portion, blockMs: number): Promise<unknown> {
    const { count } = portion
    const timeoutMs = blockMs + this.#replyTimeoutMs * portion.patience
    const sentAt = performance.now()
    try {
      const reply = await connection.send(command, timeoutMs)
      const streams = command[0] === 'XREAD' ? (reply as [unknown, unknown[]][] | null ?? []).filter(([key]) => !this.#isNodes(key)).map(([, raw]) => raw) : [reply as unknown[]]
      const share = (performance.now() - sentAt) / timeoutMs
      for (const raw of streams) portion.came(count, raw.length, bytesOfEntries(raw), share)
      return reply
    } catch (error) {
      // A timer may fire a little early.
      if (performance.now() - sentAt > timeoutMs - 10) portion.late(count)
      throw error
    }
  }

  #isNodes (key: unknown): boolean {
    return String(key).endsWith(this.#nodes)
  }

  #observe (clock: number): void {
    this.#aheadMs = clock - Date.now()
  }
}

function limits ({ maxEvents, maxAgeMs, maxBytes }: History): number[] {
  return [maxEvents, maxAgeMs, maxBytes]
}

function texts (reply: unknown): string[] {
  return (reply as unknown[]).map(String)
}

const Ids = Type.Optional(Type.Array(Type.String()))
/** All of a message but its data. Of another process, perhaps of another version: what cannot be delivered must not stop what comes after it. */
const Head = Type.Object({
  event: Type.String({ pattern: '^[^\\r\\n\\0]+$' }),
  priority: Type.Integer({ minimum: 0, maximum: 3 }),
  retry: Type.Optional(Type.Integer({ minimum: 100, maximum: 3_600_000 })),
  key: Type.Optional(Type.String()),
  target: Type.Object({ userIds: Ids, subscriptionIds: Ids, clientIds: Ids, exceptClientIds: Ids }),
  nonce: Type.String()
})
const head = TypeCompiler.Compile(Head)

const NOTHING: Stretch = { entries: [], cut: false }

function decode (raw: unknown, ephemeral: boolean): Entry {
  const [id, fields] = raw as [unknown, unknown[]]
  const [epoch, number] = String(id).split('-').map(Number) as [number, number]
  const [t, time, b, , o, other, h, text, d, data, , command] = fields as string[]
  const ours = t === 't' && b === 'b' && o === 'o' && h === 'h' && d === 'd' && isCount(time!) && isCount(other!)
  const parsed = ours ? parse(text!) : null
  if (!head.Check(parsed)) return { epoch, number, message: null, nonce: '', time: 0, other: 0, command: 0 }
  return { epoch, number, message: messageOf(parsed, data!, ephemeral ? 0 : number), nonce: parsed.nonce, time: Number(time), other: Number(other), command: Number(command) }
}

/** Null for what is not ours. */
function told (raw: unknown): Message | null {
  const [h, text, d, data] = (raw as [unknown, string[]])[1]
  const parsed = h === 'h' && d === 'd' ? parse(text!) : null
  return head.Check(parsed) ? messageOf(parsed, data!, 0) : null
}

function headOf ({ event, priority, retry, key, target }: OutgoingMessage, nonce: string): string {
  return JSON.stringify({ event, priority, retry, key, target, nonce })
}

function messageOf ({ event, priority, retry, key, target }: Static<typeof Head>, data: string, seq: number): Message {
  return { event, data, priority: priority as EventPriority, retry, key, target, ephemeral: seq === 0, seq }
}

/** The time in the id of an entry. */
export function timeOf (id: string): number {
  return Number(id.split('-')[0])
}

function isCount (text: string): boolean {
  return /^\d{1,15}$/.test(text)
}

function bytesOfEntries (entries: readonly unknown[]): number {
  let bytes = 0
  for (const entry of entries) for (const text of (entry as [unknown, unknown[]])[1]) bytes += String(text).length
  return bytes
}

function parse (text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}
