import type { History, Message, Page } from './broker.js'
import type { EventPriority } from './event.js'

/** The newest messages of a log, bounded by count, age and bytes. Sequence numbers in it have no holes. */
export class Ring {
  readonly #history: History
  readonly #now: () => number
  #messages: (Message | undefined)[] = new Array(16)
  #times: number[] = new Array(16)
  #first: number
  #last: number
  #bytes = 0
  #full = false

  /** @param position sequence number of the newest message before the first that will be appended. */
  constructor (history: History, now: () => number = Date.now, position = 0) {
    this.#history = history
    this.#now = now
    this.#first = position + 1
    this.#last = position
  }

  /** Sequence number of the oldest message kept; one more than `last` when there is none. */
  get first (): number {
    return this.#first
  }

  get last (): number {
    return this.#last
  }

  get bytes (): number {
    return this.#bytes
  }

  /** Whether something has been left out because of its bounds: what is older is none of the history. */
  get full (): boolean {
    return this.#full
  }

  /** @param time when it was logged, in milliseconds since the epoch. */
  append (message: Message, time: number = this.#now()): void {
    this.#last = message.seq
    this.#put(message, time)
    this.#trim()
  }

  /** Adds the message before the oldest. False when it is out of bounds. */
  prepend (message: Message, time: number): boolean {
    this.#first = message.seq
    this.#put(message, time)
    this.#trim()
    return this.#first === message.seq
  }

  /** The messages of one lane after `after`, oldest first. */
  read ({ after, priority, limit }: { after: number, priority: EventPriority, limit: number }): Page {
    this.#trim()
    if (after > this.#last) return { messages: [], next: this.#last, gap: 'unknown' }
    if (after < this.#first - 1) return { messages: [], next: this.#last, gap: 'trimmed' }
    const messages: Message[] = []
    for (let seq = after + 1; seq <= this.#last; seq++) {
      const message = this.#messages[seq & (this.#messages.length - 1)]!
      if (message.priority !== priority) continue
      if (messages.length === limit) return { messages, next: messages.at(-1)!.seq }
      messages.push(message)
    }
    return { messages, next: this.#last }
  }

  #put (message: Message, time: number): void {
    if (this.#last - this.#first >= this.#messages.length) this.#grow(message.seq)
    const slot = message.seq & (this.#messages.length - 1)
    this.#messages[slot] = message
    this.#times[slot] = time
    this.#bytes += Buffer.byteLength(message.data)
  }

  #trim (): void {
    const { maxEvents, maxAgeMs, maxBytes } = this.#history
    const oldest = this.#now() - maxAgeMs
    const mask = this.#messages.length - 1
    while (this.#first <= this.#last &&
      (this.#last - this.#first + 1 > maxEvents || this.#bytes > maxBytes || this.#times[this.#first & mask]! < oldest)) {
      const slot = this.#first++ & mask
      this.#bytes -= Buffer.byteLength(this.#messages[slot]!.data)
      this.#messages[slot] = undefined
      this.#full = true
    }
  }

  /** Doubles the room; the message with this number is not there yet. */
  #grow (arriving: number): void {
    const size = this.#messages.length * 2
    const messages: (Message | undefined)[] = new Array(size)
    const times: number[] = new Array(size)
    for (let seq = this.#first; seq <= this.#last; seq++) {
      if (seq === arriving) continue
      messages[seq & (size - 1)] = this.#messages[seq & (this.#messages.length - 1)]
      times[seq & (size - 1)] = this.#times[seq & (this.#messages.length - 1)]!
    }
    this.#messages = messages
    this.#times = times
  }
}
