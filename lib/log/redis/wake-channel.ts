import { setImmediate as endOfTurn } from 'node:timers/promises'
import type { RunEvents } from '../run-store.js'
import type { Connect, Connection } from './client.js'
import type { OnDemandConnection } from './on-demand.js'
import { Reconnector } from './reconnector.js'
import { WAKE_NODE } from './scripts/run.js'

const BLOCK_MS = 2_000
/** Time for which messages are kept. Older ones are of no use: readers look for news by themselves. */
const KEPT_MS = 10_000
const MAX_MESSAGES = 100

/** Size of the texts of a message in characters. Nodes read further events themselves. */
const MAX_TEXTS = 64 * 1024

/** News of a run. */
export interface RunNews {
  /** The hash of the run. */
  readonly run: string
  /** Whether it has ended. */
  readonly ended?: boolean
  /** Its new events. Absent if the node has to read them. */
  readonly events?: RunEvents
}

/** What a node has not been told yet. */
class Message {
  readonly #news = new Map<string, RunNews>()
  #size = 0

  add (news: RunNews): void {
    const { run, ended, events } = news
    const earlier = this.#news.get(run)
    const size = events === undefined ? 0 : events.texts.reduce((size, text) => size + text.length, 0)
    const isWhole = earlier === undefined && this.#size + size <= MAX_TEXTS
    if (isWhole) this.#size += size
    this.#news.set(run, isWhole ? news : { run, ended: ended === true || earlier?.ended === true })
  }

  get text (): string {
    return JSON.stringify([...this.#news.values()])
  }
}

/**
 * Tells other nodes which runs have news, and the new events: a node that is told need not read them. One message for each node and turn
 * of the event loop, on a stream of that node. Messages can be lost. This node's own messages are read on a connection of its own, because
 * reading blocks it.
 */
export class WakeChannel {
  readonly #nodeId: string
  readonly #keyPrefix: string
  readonly #link: OnDemandConnection
  readonly #replyTimeoutMs: number
  readonly #listener: Reconnector
  readonly #onNews: (news: RunNews) => void
  /** Messages by node. */
  #messages = new Map<string, Message>()
  #read = '0-0'

  constructor ({ nodeId, keyPrefix, replyTimeoutMs }: { nodeId: string, keyPrefix: string, replyTimeoutMs: number }, link: OnDemandConnection, connect: Connect, onNews: (news: RunNews) => void) {
    this.#nodeId = nodeId
    this.#keyPrefix = keyPrefix
    this.#link = link
    this.#replyTimeoutMs = replyTimeoutMs
    this.#onNews = onNews
    this.#listener = new Reconnector({ connect, serve: connection => this.#serve(connection), onChange: () => {} })
  }

  /** Starts to receive messages. */
  listen (): void {
    this.#listener.start()
  }

  /** Tells a node the news of a run. */
  tell (nodeId: string, news: RunNews): void {
    if (nodeId === this.#nodeId) return this.#onNews(news)
    if (this.#messages.size === 0) setImmediate(() => this.#send())
    let message = this.#messages.get(nodeId)
    if (message === undefined) this.#messages.set(nodeId, message = new Message())
    message.add(news)
  }

  /** Stops to receive messages. */
  close (): Promise<void> {
    return this.#listener.stop()
  }

  #send (): void {
    const messages = this.#messages
    this.#messages = new Map()
    for (const [nodeId, { text }] of messages) {
      this.#link.use(connection => WAKE_NODE.run(connection, [this.#keyOf(nodeId)], [text, String(KEPT_MS)], this.#replyTimeoutMs)).catch(() => {})
    }
  }

  #keyOf (nodeId: string): string {
    return `${this.#keyPrefix}:wake:{${nodeId}}`
  }

  async #serve (connection: Connection): Promise<never> {
    const key = this.#keyOf(this.#nodeId)
    for (;;) {
      const reply = await connection.send(['XREAD', 'COUNT', String(MAX_MESSAGES), 'BLOCK', String(BLOCK_MS), 'STREAMS', key, this.#read], BLOCK_MS + this.#replyTimeoutMs)
      const entries = reply === null ? [] : (reply as [unknown, [unknown, unknown[]][]][])[0]![1]
      for (const [id, fields] of entries) {
        this.#read = String(id)
        for (const news of JSON.parse(String(fields[1])) as RunNews[]) this.#onNews(news)
      }
      await endOfTurn()
    }
  }
}
