import { setImmediate as endOfTurn } from 'node:timers/promises'
import type { Connect, Connection } from './client.js'
import type { OnDemandConnection } from './on-demand.js'
import { Reconnector } from './reconnector.js'
import { WAKE_NODE } from './scripts/run.js'

const BLOCK_MS = 2_000
/** Time for which messages are kept. Older ones are of no use: readers look for news by themselves. */
const KEPT_MS = 10_000
const MAX_MESSAGES = 100

/** Marks the hash of a run that has ended. */
const ENDED = '!'

/**
 * Tells other nodes which runs have news: one message for each node and turn of the event loop, on a stream of that node. Messages can be
 * lost. This node's own messages are read on a connection of its own, because reading blocks it.
 */
export class WakeChannel {
  readonly #nodeId: string
  readonly #keyPrefix: string
  readonly #link: OnDemandConnection
  readonly #replyTimeoutMs: number
  readonly #listener: Reconnector
  readonly #onNews: (run: string, ended: boolean) => void
  /** Runs with news, by node. */
  #news = new Map<string, Set<string>>()
  #read = '0-0'

  /** @param onNews called with the hash of a run */
  constructor ({ nodeId, keyPrefix, replyTimeoutMs }: { nodeId: string, keyPrefix: string, replyTimeoutMs: number }, link: OnDemandConnection, connect: Connect, onNews: (run: string, ended: boolean) => void) {
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

  /** Tells a node that a run has news. */
  tell (nodeId: string, run: string, ended: boolean): void {
    if (nodeId === this.#nodeId) return this.#onNews(run, ended)
    if (this.#news.size === 0) setImmediate(() => this.#send())
    let news = this.#news.get(nodeId)
    if (news === undefined) this.#news.set(nodeId, news = new Set())
    news.add(ended ? ENDED + run : run)
  }

  /** Stops to receive messages. */
  close (): Promise<void> {
    return this.#listener.stop()
  }

  #send (): void {
    const all = this.#news
    this.#news = new Map()
    for (const [nodeId, news] of all) {
      this.#link.use(connection => WAKE_NODE.run(connection, [this.#keyOf(nodeId)], [[...news].join(' '), String(KEPT_MS)], this.#replyTimeoutMs)).catch(() => {})
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
        for (const run of String(fields[1]).split(' ')) this.#onNews(run.startsWith(ENDED) ? run.slice(1) : run, run.startsWith(ENDED))
      }
      await endOfTurn()
    }
  }
}
