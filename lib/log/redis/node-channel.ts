import { setImmediate as endOfTurn } from 'node:timers/promises'
import { BrokerUnavailable } from '../../errors.js'
import type { Message, OutgoingMessage } from '../../events/message.js'
import type { Connection } from './client.js'
import type { ServerClock } from './server-clock.js'
import { decodeNodeMessage, headOf } from './entry.js'
import { ReadSize } from './read-size.js'
import type { Report } from './reconnector.js'
import { Script } from './script.js'

/**
 * Older messages are trimmed. A node that has not read the channel for this long, such as a process that was stopped, connects
 * again: then the cluster greets, and the other nodes say everything again.
 */
const KEPT_MS = 15_000
/** How far an id may be ahead of Redis's clock, which may be set back. */
const MAX_AHEAD_MS = 60_000
const BLOCK_MS = 2_000
/** Before all ids. */
const BEGINNING = '0-0'

/** KEYS: the stream. Returns its newest id and Redis's clock. */
const NEWEST = new Script(`
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local newest = '${BEGINNING}'
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
  -- These messages have no numbers: a key of another type is no loss.
  if info.err then redis.call('DEL', KEYS[1]) end
  for i = 1, #info, 2 do if info[i] == 'last-generated-id' then newest = info[i + 1] end end
  -- Entries after an id that is ahead of the clock are never trimmed, and no entry can follow the last id.
  if tonumber(string.match(newest, '^%d+')) > now + ${MAX_AHEAD_MS} then
    redis.call('DEL', KEYS[1])
    newest = '${BEGINNING}'
  end
end
return { newest, string.format('%.0f', now) }
`)

/**
 * Ephemeral messages between nodes: heartbeats, answers, presence. They have a stream of their own, which no flood of events
 * trims, and each node reads it on a connection of its own: behind large events, heartbeats would arrive too late.
 */
export class NodeChannel {
  readonly #key: string
  readonly #clock: ServerClock
  readonly #replyTimeoutMs: number
  readonly #onMessage: (message: Message) => void
  readonly #readSize = new ReadSize()
  /** The id up to which this node has read; null before its first contact. */
  #read: string | null = null

  /** @param onMessage called with each message, in their order. Never throws. */
  constructor (key: string, clock: ServerClock, replyTimeoutMs: number, onMessage: (message: Message) => void) {
    this.#key = key
    this.#clock = clock
    this.#replyTimeoutMs = replyTimeoutMs
    this.#onMessage = onMessage
  }

  /** Sends a message once: if it is lost, it is sent again later or was not needed. */
  async send (connection: Connection, message: OutgoingMessage): Promise<void> {
    const oldest = Math.floor(this.#clock.now - KEPT_MS)
    try {
      await connection.send(['XADD', this.#key, 'MINID', '~', String(oldest), '*', 'h', headOf(message, ''), 'd', message.data], this.#replyTimeoutMs)
    } catch (cause) {
      throw new BrokerUnavailable('could not carry a message to the other nodes', { cause })
    }
  }

  /** See `Serve`. */
  async serve (connection: Connection, report: Report): Promise<never> {
    let read = await this.#locate(connection)
    report(null)
    // A machine that was suspended is not found by the monotonic clock. A clock that is set forward costs a connection.
    let answeredAt = Date.now()
    for (;;) {
      const entries = await this.#next(connection, read)
      const silentMs = Date.now() - answeredAt
      answeredAt += silentMs
      for (const entry of entries) {
        const message = decodeNodeMessage(entry)
        if (message !== null) this.#onMessage(message)
      }
      if (entries.length > 0) read = this.#read = String(entries.at(-1)![0])
      // Thrown after the delivery: on a slow link, the next connection reads on behind these messages.
      if (silentMs > KEPT_MS) throw new BrokerUnavailable(`was not heard by this node for ${silentMs} ms: messages of other nodes may be lost`)
      // In a stream that was deleted, ids may be smaller than before, and no entry follows an id that is far ahead.
      if (entries.length === 0 || timeOf(read) > this.#clock.now + MAX_AHEAD_MS) read = await this.#locate(connection)
      await endOfTurn()
    }
  }

  /** Where this node reads on: at its first contact behind the newest message. */
  async #locate (connection: Connection): Promise<string> {
    const [newest, now] = await NEWEST.run(connection, [this.#key], [], this.#replyTimeoutMs) as [unknown, unknown]
    this.#clock.observe(Number(now))
    if (this.#read === null) this.#read = String(newest)
    else if (timeOf(String(newest)) < timeOf(this.#read)) this.#read = BEGINNING
    return this.#read
  }

  async #next (connection: Connection, after: string): Promise<[id: unknown, fields: unknown][]> {
    const { count } = this.#readSize
    const reply = await this.#readSize.read(connection, ['XREAD', 'COUNT', String(count), 'BLOCK', String(BLOCK_MS), 'STREAMS', this.#key, after], BLOCK_MS, this.#replyTimeoutMs)
    return reply === null ? [] : (reply as [unknown, [unknown, unknown][]][])[0]![1]
  }
}

/** The time in the id of an entry. */
function timeOf (id: string): number {
  return Number(id.split('-')[0])
}
