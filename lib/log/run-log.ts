import { Buffer } from 'node:buffer'
import { PAGE_BYTES, PAGE_EVENTS } from './run-store.js'

/** Size of the first buffer of a run. Each further one has twice the size, up to 16 KB. */
const FIRST_BYTES = 1024
const DOUBLINGS = 4
/** Unused part of a full buffer that is worth a copy. */
const WASTE_BYTES = 1024
/** The end of an encoded event. Nothing else in an event contains it: each line of data begins with the name of its field. */
const END = '\n\n'

/** Consecutive events in one buffer. As strings, short events would take several times their bytes, and the collector would copy them. */
interface Segment {
  /** Number of its first event. */
  readonly first: number
  events: Buffer
  /** Used bytes of the buffer. */
  used: number
}

/** The events of one run in memory. */
export class RunLog {
  readonly #segments: Segment[] = []
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
    let segment = this.#segments.at(-1)
    if (segment === undefined || segment.used + bytes > segment.events.length) segment = this.#next(bytes)
    segment.used += segment.events.write(text, segment.used)
    this.#count++
    this.#bytes += bytes
  }

  /** Begins a segment with room for this number of bytes. */
  #next (bytes: number): Segment {
    this.pack()
    const size = Math.max(bytes, FIRST_BYTES << Math.min(this.#segments.length, DOUBLINGS))
    // Not from the pool of Node: a slice of it would keep all of it in memory.
    const segment = { first: this.#count + 1, events: Buffer.allocUnsafeSlow(size), used: 0 }
    this.#segments.push(segment)
    return segment
  }

  /** Releases unused memory. Called at the end of the run. */
  pack (): void {
    const last = this.#segments.at(-1)
    if (last === undefined || last.events.length - last.used < WASTE_BYTES) return
    const events = Buffer.allocUnsafeSlow(last.used)
    last.events.copy(events)
    last.events = events
  }

  /** Returns the events after number `after`: about `PAGE_BYTES`, at most `PAGE_EVENTS`. */
  read (after: number): string[] {
    const texts: string[] = []
    let size = 0
    for (let index = this.#indexOf(after + 1); index < this.#segments.length && size < PAGE_BYTES && texts.length < PAGE_EVENTS; index++) {
      const { first, events, used } = this.#segments[index]!
      size += used
      const pieces = events.toString('utf8', 0, used).split(END)
      for (let i = Math.max(0, after + 1 - first); i < pieces.length - 1 && texts.length < PAGE_EVENTS; i++) texts.push(pieces[i]! + END)
    }
    return texts
  }

  /** Returns the index of the segment with this event; of the last one if there is no such event. */
  #indexOf (event: number): number {
    let low = 0
    let high = this.#segments.length - 1
    while (low < high) {
      const middle = (low + high + 1) >> 1
      if (this.#segments[middle]!.first <= event) low = middle
      else high = middle - 1
    }
    return low
  }
}
