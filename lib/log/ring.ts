import type { History, LogSize, Page } from './broker.js'
import { type Message, bytesOf, conflationKey } from '../events/message.js'
import type { EventPriority } from '../events/event-rules.js'
import { LogIndex, type Interest } from './log-index.js'
import type { Postings } from './postings.js'

interface Entry {
  readonly message: Message
  readonly time: number
  readonly bytes: number
  /** See `conflationKey`. */
  readonly key: string | null
}

/** Messages that one read looks at, so that a long run of messages for others does not block the event loop. */
const SCAN = 2048
/** A read of fewer messages does not use the index. */
const LEAST_INDEXED = 128

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
  /** Index of the messages before `#indexEnd`; null until a read needs it, as most messages are never read again. */
  #index: LogIndex | null = null
  #indexEnd = 0

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

  /** Number and memory of the stored messages. */
  get size (): LogSize {
    this.#trim(this.#now())
    return { events: this.#last - this.#first + 1, bytes: this.#bytes }
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
    this.#index = null
    this.#first = message.seq
    this.#put(message, time)
    this.#trim(this.#now())
    return this.#first === message.seq
  }

  /**
   * Returns the messages of one priority after `after`, oldest first, without conflated ones. With an interest, messages that the
   * connection cannot receive may be left out.
   */
  read ({ after, priority, limit, interest }: { after: number, priority: EventPriority, limit: number, interest?: Interest }): Page {
    this.#trim(this.#now())
    if (after > this.#last) return { messages: [], next: this.#last, gap: 'unknown' }
    if (after < this.#first - 1) return { messages: [], next: this.#last, gap: 'trimmed' }
    const isIndexed = interest !== undefined && this.#last - after >= LEAST_INDEXED && LogIndex.serves(interest) && this.#makeIndex()
    const lists = isIndexed ? this.#index!.lists(interest) : null
    return (lists === null ? null : this.#pick(lists, after, priority, limit)) ?? this.#scan(after, priority, limit)
  }

  /**
   * Returns whether the connection can receive none of the messages after `after`. False if the ring does not have them all, or if only
   * a scan could tell.
   */
  hasNothing (after: number, interest: Interest): boolean {
    this.#trim(this.#now())
    if (after > this.#last || after < this.#first - 1 || !LogIndex.serves(interest)) return false
    if ((this.#index === null && this.#last - after < LEAST_INDEXED) || !this.#makeIndex()) return false
    return this.#index!.lists(interest).every(list => list.indexAfter(after) === list.end)
  }

  #scan (after: number, priority: EventPriority, limit: number): Page {
    const messages: Message[] = []
    const end = Math.min(this.#last, after + SCAN)
    for (let seq = after + 1; seq <= end; seq++) {
      const message = this.#wanted(seq, priority)
      if (message === null) continue
      if (messages.length === limit) return { messages, next: seq - 1 }
      messages.push(message)
    }
    return { messages, next: end }
  }

  /** Reads the messages in these lists. Returns null if a scan looks at fewer. */
  #pick (lists: readonly Postings[], after: number, priority: EventPriority, limit: number): Page | null {
    const starts = lists.map(list => list.indexAfter(after))
    const span = this.#last - after
    const sum = lists.reduce((sum, list, i) => sum + list.end - starts[i]!, 0)
    const most = Math.max(limit + 1, Math.floor(SCAN / lists.length))
    // A scan stops when the page is full: if the messages are many, that is soon.
    if (Math.min(sum, lists.length * most) > Math.min(SCAN, span, (limit + 1) * span / sum)) return null
    let end = this.#last
    const found: Message[] = []
    for (const [i, list] of lists.entries()) {
      const stop = Math.min(list.end, starts[i]! + most)
      for (let at = starts[i]!; at < stop; at++) {
        const message = this.#wanted(list.at(at), priority)
        if (message !== null) found.push(message)
      }
      // What follows in this list has not been looked at.
      if (stop < list.end) end = Math.min(end, list.at(stop) - 1)
    }
    found.sort((one, other) => one.seq - other.seq)
    const messages: Message[] = []
    for (const message of found) {
      if (message.seq > end) break
      // A message for several topics is in several lists.
      if (message === messages.at(-1)) continue
      if (messages.length === limit) return { messages, next: message.seq - 1 }
      messages.push(message)
    }
    return { messages, next: end }
  }

  /** Returns the message of this priority with this number; null if it has another priority or was conflated. */
  #wanted (seq: number, priority: EventPriority): Message | null {
    const { message, key } = this.#entries[seq & (this.#entries.length - 1)]!
    return message.priority !== priority || (key !== null && this.#newest.get(key)! > seq) ? null : message
  }

  /** Indexes more messages, in about the time in which a read scans. Returns whether all are indexed. */
  #makeIndex (): boolean {
    if (this.#index === null) {
      this.#index = new LogIndex()
      this.#indexEnd = this.#first
    }
    for (let work = 0; work < SCAN && this.#indexEnd <= this.#last; this.#indexEnd++) work += this.#index.add(this.#indexEnd, this.#entries[this.#indexEnd & (this.#entries.length - 1)]!.message.target)
    return this.#indexEnd > this.#last
  }

  #put (message: Message, time: number): void {
    if (this.#last - this.#first >= this.#entries.length) this.#grow()
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
    // A new index costs less than to take many messages out of it.
    if (this.#index !== null && this.#first + SCAN <= this.#last && this.#entries[(this.#first + SCAN) & mask]!.time < oldest) this.#index = null
    while (this.#first <= this.#last &&
      (this.#last - this.#first + 1 > maxEvents || (this.#bytes > maxBytes && this.#first < this.#last) || this.#entries[this.#first & mask]!.time < oldest)) {
      const seq = this.#first++
      const { message, bytes, key } = this.#entries[seq & mask]!
      if (this.#index !== null) {
        if (seq < this.#indexEnd) this.#index.remove(seq, message.target)
        else this.#indexEnd = this.#first
      }
      this.#entries[seq & mask] = undefined
      this.#bytes -= bytes
      if (key !== null && this.#newest.get(key) === seq) this.#newest.delete(key)
      this.#full = true
    }
  }

  /** Doubles the capacity. */
  #grow (): void {
    const size = this.#entries.length * 2
    const entries: (Entry | undefined)[] = new Array(size)
    for (let seq = this.#first; seq <= this.#last; seq++) entries[seq & (size - 1)] = this.#entries[seq & (this.#entries.length - 1)]
    this.#entries = entries
  }
}
