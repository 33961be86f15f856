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
 * Age at which messages are trimmed. A node that has not read the channel for this long, such as a suspended process, reconnects.
 * The cluster then greets, and the other nodes send their state again.
 */
const KEPT_MS = 15_000
/** Maximum lead of an id over Redis's clock, which can be set back. */
const MAX_AHEAD_MS = 60_000
const BLOCK_MS = 2_000
/** An id before all others. */
const BEGINNING = '0-0'

/** Returns the newest id of the stream in KEYS[1], and Redis's clock. Deletes a stream that cannot be used. */
const NEWEST = new Script(`
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local newest = '${BEGINNING}'
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
  -- A key of another type was overwritten. Messages of this stream are not numbered, so deleting it loses no order.
  if info.err then redis.call('DEL', KEYS[1]) end
  for i = 1, #info, 2 do if info[i] == 'last-generated-id' then newest = info[i + 1] end end
  -- Ids that are far ahead of the clock would keep entries from being trimmed, and no entry can follow the last possible id.
  if tonumber(string.match(newest, '^%d+')) > now + ${MAX_AHEAD_MS} then
    redis.call('DEL', KEYS[1])
    newest = '${BEGINNING}'
  end
end
return { newest, string.format('%.0f', now) }
`)

/**
 * Sends and receives ephemeral messages between nodes: heartbeats, answers and presence. They have a separate stream, so that
 * many events cannot trim them. Each node reads it on a separate connection: behind large events, heartbeats would be late.
 */
export class NodeChannel {
  readonly #key: string
  readonly #clock: ServerClock
  readonly #replyTimeoutMs: number
  readonly #onMessage: (message: Message) => void
  readonly #readSize = new ReadSize()
  /** Id of the last entry that this node has read; null before the first contact. */
  #read: string | null = null

  /** @param onMessage called with each message in order; must not throw */
  constructor (key: string, clock: ServerClock, replyTimeoutMs: number, onMessage: (message: Message) => void) {
    this.#key = key
    this.#clock = clock
    this.#replyTimeoutMs = replyTimeoutMs
    this.#onMessage = onMessage
  }

  /**
   * Sends a message once, without a retry: senders repeat messages that matter.
   * @throws SSE_ERR_BROKER_UNAVAILABLE
   */
  async send (connection: Connection, message: OutgoingMessage): Promise<void> {
    const oldest = Math.floor(this.#clock.now - KEPT_MS)
    try {
      await connection.send(['XADD', this.#key, 'MINID', '~', String(oldest), '*', 'h', headOf(message, ''), 'd', message.data], this.#replyTimeoutMs)
    } catch (cause) {
      throw new BrokerUnavailable('could not deliver a message to the other nodes', { cause })
    }
  }

  /** Receives messages over this connection until it fails; see `Serve`. */
  async serve (connection: Connection, report: Report): Promise<never> {
    let read = await this.#locate(connection)
    report(null)
    // The monotonic clock does not advance while a machine is suspended. With the wall clock, a clock set forward costs a reconnect.
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
      // Thrown after the delivery, so that on a slow link the next connection continues after these messages.
      if (silentMs > KEPT_MS) throw new BrokerUnavailable(`did not reach this node for ${silentMs} ms: messages of other nodes may be lost`)
      // A stream that was deleted can restart with smaller ids, and no entry follows an id that is far ahead.
      if (entries.length === 0 || timeOf(read) > this.#clock.now + MAX_AHEAD_MS) read = await this.#locate(connection)
      await endOfTurn()
    }
  }

  /** Returns the id after which this node reads. At the first contact it is the newest id. */
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

/** Returns the time in the id of an entry. */
function timeOf (id: string): number {
  return Number(id.split('-')[0])
}
