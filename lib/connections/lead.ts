import type { Frame } from '../delivery/frame.js'
import type { MemoryBudget } from '../util/memory-budget.js'
import { encodeIdLine } from '../wire/event-stream.js'

/** The blocks that an outbox sends before everything else: the events of a snapshot, the last with its cursor, or a cursor alone. */
export class Lead {
  readonly #frames: readonly Frame[]
  readonly #cursor: string
  readonly #budget: MemoryBudget
  #sent = 0
  #bytes = 0

  constructor (frames: readonly Frame[], cursor: string, budget: MemoryBudget) {
    this.#frames = frames
    this.#cursor = cursor
    this.#budget = budget
    for (const frame of frames) {
      budget.hold(frame)
      this.#bytes += frame.bytes
    }
  }

  /** Memory of the waiting frames in bytes. */
  get bytes (): number {
    return this.#bytes
  }

  /** Whether the blocks are a snapshot, and not a cursor alone. */
  get isState (): boolean {
    return this.#frames.length > 0
  }

  /** Whether everything is sent. */
  get sent (): boolean {
    return this.#sent >= Math.max(1, this.#frames.length)
  }

  /**
   * Removes and returns the next blocks, about `bytes` bytes.
   * @param mark the end of the cursor; null sends no cursor
   */
  take (bytes: number, mark: string | null): { text: string, frames: readonly Frame[] } {
    const idLine = mark === null ? '' : encodeIdLine(this.#cursor + mark)
    const first = this.#sent
    const { length } = this.#frames
    if (length === 0) {
      this.#sent = 1
      return { text: idLine === '' ? '' : `${idLine}\n`, frames: [] }
    }
    let text = ''
    while (this.#sent < length && bytes > 0) {
      const frame = this.#frames[this.#sent++]!
      this.#budget.release(frame)
      this.#bytes -= frame.bytes
      bytes -= frame.textBytes
      text += (this.#sent === length ? idLine : '') + frame.text
    }
    return { text, frames: this.#frames.slice(first, this.#sent) }
  }

  /** Discards the rest. */
  discard (): void {
    for (; this.#sent < this.#frames.length; this.#sent++) this.#budget.release(this.#frames[this.#sent]!)
  }
}
