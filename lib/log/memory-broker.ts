import type { Broker, History, LogSize, Page, Published, ReadRequest, Sink } from './broker.js'
import type { Message, OutgoingMessage } from '../events/message.js'
import { Closed, InvalidOption } from '../errors.js'
import { systemClock } from '../util/clock.js'
import { createId } from '../util/id.js'
import type { Interest } from './log-index.js'
import { Ring } from './ring.js'

/**
 * Creates an event log in the memory of a single node, the default of the option `broker`. The log is lost when the process ends:
 * clients that reconnect to the next process receive `sse:gap`. Each manager needs its own broker.
 * @example
 * ```ts
 * import Fastify from 'fastify'
 * import ssePlugin, { memoryBroker } from 'fastify-sse-manager'
 *
 * const app = Fastify()
 * await app.register(ssePlugin, { broker: memoryBroker() })
 * ```
 */
export function memoryBroker (): Broker {
  return new MemoryBroker()
}

/** A message that was published during a delivery, and is delivered after it. */
interface Waiting {
  readonly message: Message
  resolve (published: Published): void
  reject (error: unknown): void
}

class MemoryBroker implements Broker {
  readonly shared = false
  readonly epoch = createId().slice(0, 8)
  #ring: Ring | null = null
  #sink: Sink | null = null
  #now = systemClock.wall
  #waiting: Waiting[] = []
  #delivering = false
  /** Expiry of each claimed key, oldest claim first. */
  readonly #claims = new Map<string, number>()

  get position (): number {
    return this.#ring?.last ?? 0
  }

  get size (): LogSize | undefined {
    return this.#ring?.size
  }

  async open (sink: Sink, history: History, now = systemClock.wall): Promise<void> {
    if (this.#ring !== null) throw new InvalidOption('broker', 'is already open: create one for each manager')
    this.#ring = new Ring(history, now)
    this.#now = now
    this.#sink = sink
    sink.state('up')
  }

  publish (outgoing: OutgoingMessage): Published | Promise<Published> {
    if (this.#sink === null) throw new Closed()
    const message = this.#log(outgoing)
    if (this.#delivering) return new Promise((resolve, reject) => { this.#waiting.push({ message, resolve, reject }) })
    this.#delivering = true
    try {
      return this.#deliver(message)
    } finally {
      this.#deliverWaiting()
      this.#delivering = false
    }
  }

  /** Adds the sequence number to the message and stores it. A copy would take as much time as all checks of the event. */
  #log (outgoing: OutgoingMessage): Message {
    const message = outgoing as { -readonly [K in keyof Message]: Message[K] }
    message.seq = message.ephemeral ? 0 : this.position + 1
    if (!message.ephemeral) this.#ring!.append(message)
    return message
  }

  #deliver (message: Message): Published {
    return { seq: message.ephemeral ? null : message.seq, delivered: this.#sink?.deliver(message) ?? 0 }
  }

  #deliverWaiting (): void {
    while (this.#waiting.length > 0) {
      const waiting = this.#waiting
      this.#waiting = []
      for (const { message, resolve, reject } of waiting) {
        try {
          resolve(this.#deliver(message))
        } catch (error) {
          reject(error)
        }
      }
    }
  }

  async read (request: ReadRequest): Promise<Page> {
    if (this.#sink === null) throw new Closed()
    if (request.epoch !== this.epoch) return { messages: [], next: this.position, gap: 'epoch' }
    return this.#ring!.read(request)
  }

  hasNothing (after: number, interest: Interest): boolean {
    return this.#ring?.hasNothing(after, interest) === true
  }

  async claim (key: string, ttlMs: number): Promise<boolean> {
    if (this.#sink === null) throw new Closed()
    const now = this.#now()
    for (const [old, until] of this.#claims) {
      if (until > now) break
      this.#claims.delete(old)
    }
    if ((this.#claims.get(key) ?? 0) > now) return false
    this.#claims.delete(key)
    this.#claims.set(key, now + ttlMs)
    return true
  }

  async close (): Promise<void> {
    this.#sink = null
    this.#ring = null
  }
}
