import type { Message } from '../events/message.js'
import { FRAME_BYTES, Frame } from './frame.js'

/** Of the frames of one generation; one alone may be larger. */
const GENERATION_BYTES = 2 * 1024 * 1024

/**
 * Frames of messages that were read from the log, shared by all who read the same stretch of it at about the same time. When
 * a generation is full, the one before it is dropped: at most twice `GENERATION_BYTES` are kept.
 */
export class FrameCache {
  #newer = new Map<number, Frame>()
  #older = new Map<number, Frame>()
  /** Of the newer ones. */
  #bytes = 0
  #epoch = ''

  of (message: Message, epoch: string): Frame {
    if (epoch !== this.#epoch) this.#begin(epoch)
    const { seq } = message
    let frame = this.#newer.get(seq)
    if (frame !== undefined) return frame
    frame = this.#older.get(seq)
    if (frame === undefined) frame = Frame.ofMessage(message, epoch)
    else this.#older.delete(seq)
    this.#keep(frame)
    return frame
  }

  #begin (epoch: string): void {
    this.#epoch = epoch
    this.#newer.clear()
    this.#older.clear()
    this.#bytes = 0
  }

  #keep (frame: Frame): void {
    const bytes = frame.bytes + FRAME_BYTES
    if (this.#bytes > 0 && this.#bytes + bytes > GENERATION_BYTES) {
      this.#older = this.#newer
      this.#newer = new Map()
      this.#bytes = 0
    }
    this.#newer.set(frame.seq, frame)
    this.#bytes += bytes
  }
}
