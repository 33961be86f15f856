import type { History, Page } from './broker.js'
import { type Message, bytesOf, conflationKey } from '../events/message.js'
import type { EventPriority } from '../events/event-rules.js'

interface Entry {
  readonly message: Message
  readonly time: number
  readonly bytes: number
  /** See `conflationKey`. */
  readonly key: string | null
}

/** Messages that one read scans at most, so that a long run of other priorities does not block the event loop. */
const SCAN = 2048

/**
 * The newest messages of a log, bounded by count, age and bytes. A single message can exceed the bytes. Sequence numbers are
 * consecutive.
 */
export class Ring {
  readonly #history: History
  readonly #now: () => number
  #entries: (Entry | undefined)[] = new Array(16)
  /** Sequence number of the newest message of each conflation key. */
  readonly #newest = new Map<string, number>()
  #first: number
  #last: number
  #bytes = 0
  #full = false

  /** @param position sequence number before the first message that will be appended */
  constructor (history: History, now: () => number, position = 0) {
    this.#history = history
    this.#now = now
    this.#first = position + 1
    this.#last = position
  }

  /** Sequence number of the oldest stored message; `last + 1` for an empty ring. */
  get first (): number {
    return this.#first
  }

  /** Sequence number of the newest message. */
  get last (): number {
    return this.#last
  }

  /** Memory of the stored messages in bytes. */
  get bytes (): number {
    return this.#bytes
  }

  /** Whether messages were removed because of the bounds. Older messages are then not part of the history. */
  get full (): boolean {
    return this.#full
  }

  /**
   * Adds a message after the newest one.
   * @param time when the message was logged, in milliseconds since the Unix epoch. Absent: now.
   */
  append (message: Message, time?: number): void {
    const now = this.#now()
    this.#last = message.seq
    this.#put(message, time ?? now)
    this.#trim(now)
  }

  /** Adds a message before the oldest one. Returns false if the bounds exclude it. */
  prepend (message: Message, time: number): boolean {
    this.#first = message.seq
    this.#put(message, time)
    this.#trim(this.#now())
    return this.#first === message.seq
  }

  /** Returns the messages of one priority after `after`, oldest first, without conflated ones. */
  read ({ after, priority, limit }: { after: number, priority: EventPriority, limit: number }): Page {
    this.#trim(this.#now())
    if (after > this.#last) return { messages: [], next: this.#last, gap: 'unknown' }
    if (after < this.#first - 1) return { messages: [], next: this.#last, gap: 'trimmed' }
    const messages: Message[] = []
    const end = Math.min(this.#last, after + SCAN)
    for (let seq = after + 1; seq <= end; seq++) {
      const { message, key } = this.#entries[seq & (this.#entries.length - 1)]!
      if (message.priority !== priority || (key !== null && this.#newest.get(key)! > seq)) continue
      if (messages.length === limit) return { messages, next: seq - 1 }
      messages.push(message)
    }
    return { messages, next: end }
  }

  #put (message: Message, time: number): void {
    if (this.#last - this.#first >= this.#entries.length) this.#grow(message.seq)
    const key = conflationKey(message)
    const entry = { message, time, bytes: bytesOf(message, key), key }
    this.#entries[message.seq & (this.#entries.length - 1)] = entry
    this.#bytes += entry.bytes
    if (entry.key !== null) this.#newest.set(entry.key, Math.max(message.seq, this.#newest.get(entry.key) ?? 0))
  }

  #trim (now: number): void {
    const { maxEvents, maxAgeMs, maxBytes } = this.#history
    const oldest = now - maxAgeMs
    const mask = this.#entries.length - 1
    while (this.#first <= this.#last &&
      (this.#last - this.#first + 1 > maxEvents || (this.#bytes > maxBytes && this.#first < this.#last) || this.#entries[this.#first & mask]!.time < oldest)) {
      const seq = this.#first++
      const { bytes, key } = this.#entries[seq & mask]!
      this.#entries[seq & mask] = undefined
      this.#bytes -= bytes
      if (key !== null && this.#newest.get(key) === seq) this.#newest.delete(key)
      this.#full = true
    }
  }

  /** Doubles the capacity. The message with the number `arriving` is not stored yet. */
  #grow (arriving: number): void {
    const size = this.#entries.length * 2
    const entries: (Entry | undefined)[] = new Array(size)
    for (let seq = this.#first; seq <= this.#last; seq++) {
      if (seq !== arriving) entries[seq & (size - 1)] = this.#entries[seq & (this.#entries.length - 1)]
    }
    this.#entries = entries
  }
}
