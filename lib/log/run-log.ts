import { Buffer } from 'node:buffer'
import { PAGE_BYTES, PAGE_EVENTS } from './run-store.js'

/** Size at which the newest events are packed into one buffer. */
const SEGMENT_BYTES = 16 * 1024
/** The end of an encoded event. Nothing else in an event contains it: each line of data begins with the name of its field. */
const END = '\n\n'

/** Consecutive events in one buffer. As strings, short events would take several times their bytes. */
interface Segment {
  /** Number of its first event. */
  readonly first: number
  readonly events: Buffer
}

/** The events of one run in memory. */
export class RunLog {
  readonly #segments: Segment[] = []
  #tail: string[] = []
  #tailBytes = 0
  #count = 0
  #bytes = 0

  /** Number of events. */
  get count (): number {
    return this.#count
  }

  /** Size of the events in bytes. */
  get bytes (): number {
    return this.#bytes
  }

  /** Appends an event. */
  append (text: string): void {
    const bytes = Buffer.byteLength(text)
    this.#tail.push(text)
    this.#count++
    this.#bytes += bytes
    this.#tailBytes += bytes
    if (this.#tailBytes >= SEGMENT_BYTES) this.pack()
  }

  /** Packs the newest events. Called at the end of the run. */
  pack (): void {
    if (this.#tail.length === 0) return
    // Not from the pool of Node: a slice of it would keep all of it in memory.
    const events = Buffer.allocUnsafeSlow(this.#tailBytes)
    events.write(this.#tail.join(''))
    this.#segments.push({ first: this.#count - this.#tail.length + 1, events })
    this.#tail = []
    this.#tailBytes = 0
  }

  /** Returns the events after number `after`: about `PAGE_BYTES`, at most `PAGE_EVENTS`. */
  read (after: number): string[] {
    const texts: string[] = []
    let size = 0
    const tailFirst = this.#count - this.#tail.length + 1
    for (let index = this.#indexOf(after + 1); index < this.#segments.length && size < PAGE_BYTES && texts.length < PAGE_EVENTS; index++) {
      const { first, events } = this.#segments[index]!
      size += events.length
      const pieces = events.toString().split(END)
      for (let i = Math.max(0, after + 1 - first); i < pieces.length - 1 && texts.length < PAGE_EVENTS; i++) texts.push(pieces[i]! + END)
    }
    const next = after + 1 + texts.length
    if (next < tailFirst) return texts
    for (let i = next - tailFirst; i < this.#tail.length && size < PAGE_BYTES && texts.length < PAGE_EVENTS; i++) {
      size += this.#tail[i]!.length
      texts.push(this.#tail[i]!)
    }
    return texts
  }

  /** Returns the index of the segment with this event; the number of segments if it is not in a segment. */
  #indexOf (event: number): number {
    let low = 0
    let high = this.#segments.length
    while (low < high) {
      const middle = (low + high) >> 1
      const next = this.#segments[middle + 1]?.first ?? this.#count - this.#tail.length + 1
      if (next <= event) low = middle + 1
      else high = middle
    }
    return low
  }
}
