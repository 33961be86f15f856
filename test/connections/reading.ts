import { EventPriority } from '../../lib/index.js'
import { block, settle, type Joined, type Service } from '../helpers/app.js'
import { type Block } from '../helpers/sse.js'
import { blocksOf } from '../helpers/raw.js'

// The promise of the whole: ordered, at least once within the history, nothing twice; otherwise one explicit gap.

export const PRIORITIES = [EventPriority.LOW, EventPriority.NORMAL, EventPriority.HIGH, EventPriority.CRITICAL]

/** Random numbers that are the same in each run. */
export function random (seed: number): (below: number) => number {
  return below => {
    seed = (seed + 0x6d2b79f5) | 0
    let x = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
    return ((x ^ (x >>> 14)) >>> 0) % below
  }
}

/** Numbers events within each priority, so that a reader sees any hole, repetition or change of order. */
export class Sequence {
  readonly published = [0, 0, 0, 0]
  readonly #service: Service
  readonly #next: (below: number) => number

  constructor (service: Service, next: (below: number) => number) {
    this.#service = service
    this.#next = next
  }

  /** Publishes one event for everyone, of a random priority or the one given. */
  async publish (priority: EventPriority = PRIORITIES[this.#next(4)]!, padding = 0): Promise<string> {
    const n = ++this.published[priority]!
    const { id } = await this.#service.app.sse.broadcastEvent({ event: 'n', data: { priority, n, padding: 'x'.repeat(padding) }, priority })
    return id!
  }

  get total (): number {
    return this.published.reduce((sum, count) => sum + count, 0)
  }
}

/** Checks what one client reads of a Sequence, over as many connections as it likes. */
export class Reader {
  readonly seen = [0, 0, 0, 0]
  readonly faults: string[] = []
  gaps = 0

  take ({ event, data }: Pick<Block, 'event' | 'data'>): void {
    if (event === 'sse:gap') this.gaps++
    if (event !== 'n') return
    const { priority, n } = JSON.parse(data!) as { priority: EventPriority, n: number }
    if (n !== this.seen[priority]! + 1) this.faults.push(`priority ${priority}: ${n} after ${this.seen[priority]}`)
    this.seen[priority] = Math.max(this.seen[priority]!, n)
  }

  get total (): number {
    return this.seen.reduce((sum, count) => sum + count, 0)
  }
}

/** All blocks of a backlog: published while the client does not read, then read to the end. */
export async function backlog (service: Service, slow: Joined, publish: () => Promise<void>): Promise<Block[]> {
  await block(slow)
  const from = blocksOf(slow.stream.text).length
  await publish()
  slow.stream.thaw()
  await settle(service, slow.stream)
  return blocksOf(slow.stream.text).slice(from)
}
