import { setImmediate as endOfTurn } from 'node:timers/promises'
import { fitsPage, type RunEvents } from '../run-store.js'
import type { Connect, Connection } from './client.js'
import type { OnDemandConnection } from './on-demand.js'
import { Reconnector } from './reconnector.js'
import { WAKE_NODE } from './scripts/run.js'

const BLOCK_MS = 2_000
/** Time for which messages are kept. Older ones are of no use: readers look for news by themselves. */
const KEPT_MS = 10_000
const MAX_MESSAGES = 100
/** Maximum size of the texts in a message, in characters. */
const MAX_CHARS = 64 * 1024

/** News of a run. */
export interface RunNews {
  /** The hash of the run. */
  readonly run: string
  /** Whether it has ended. */
  readonly ended?: boolean
  /** Its new events. Absent if the node has to read them. */
  readonly events?: RunEvents
}

/** What a node has not been told yet: as few messages as possible. */
class Messages {
  readonly #full: string[] = []
  #news: RunNews[] = []
  #size = 0

  add (news: RunNews): void {
    const texts = news.events?.texts ?? []
    // Nodes read more than a page themselves.
    if (!fitsPage(texts)) return this.add({ run: news.run })
    let size = 0
    for (const text of texts) size += text.length
    if (this.#size + size > MAX_CHARS) {
      this.#full.push(JSON.stringify(this.#news))
      this.#news = []
      this.#size = 0
    }
    this.#news.push(news)
    this.#size += size
  }

  get texts (): string[] {
    return [...this.#full, JSON.stringify(this.#news)]
  }
}

/**
 * Tells other nodes which runs have news, and the new events: a node that is told need not read them. They are collected for each node
 * and turn of the event loop, and sent on a stream of that node. Messages can be lost. Those for this node are read on a separate
 * connection, because reading blocks it.
 */
export class WakeChannel {
  readonly #nodeId: string
  readonly #keyPrefix: string
  readonly #link: OnDemandConnection
  readonly #replyTimeoutMs: number
  readonly #listener: Reconnector
  readonly #onNews: (news: RunNews) => void
  /** By node. */
  #messages = new Map<string, Messages>()
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
    let messages = this.#messages.get(nodeId)
    if (messages === undefined) this.#messages.set(nodeId, messages = new Messages())
    messages.add(news)
  }

  /** Stops to receive messages. */
  close (): Promise<void> {
    return this.#listener.stop()
  }

  #send (): void {
    const all = this.#messages
    this.#messages = new Map()
    for (const [nodeId, { texts }] of all) {
      for (const text of texts) this.#link.use(connection => WAKE_NODE.run(connection, [this.#keyOf(nodeId)], [text, String(KEPT_MS)], this.#replyTimeoutMs)).catch(() => {})
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
