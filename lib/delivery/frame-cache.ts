import type { Message } from '../events/message.js'
import { FRAME_BYTES, Frame } from './frame.js'

/** Limit of the frames of one generation in bytes. A single frame can be larger. */
const GENERATION_BYTES = 2 * 1024 * 1024

/**
 * Caches the frames of messages that were read from the log, for connections that read the same part at about the same time. When a
 * generation is full, the previous one is dropped. So the cache keeps at most twice `GENERATION_BYTES`.
 */
export class FrameCache {
  #newer = new Map<number, Frame>()
  #older = new Map<number, Frame>()
  /** Size of the newer generation. */
  #bytes = 0
  #epoch = ''

  /** Returns the frame of a logged message. */
  of (message: Message, epoch: string): Frame {
    if (epoch !== this.#epoch) this.#begin(epoch)
    const { seq } = message
    let frame = this.#newer.get(seq)
    if (frame !== undefined) return frame
    frame = this.#older.get(seq) ?? Frame.ofMessage(message, epoch)
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
    if (this.#bytes + bytes > GENERATION_BYTES) {
      this.#older = this.#newer
      this.#newer = new Map()
      this.#bytes = 0
    }
    this.#newer.set(frame.seq, frame)
    this.#bytes += bytes
  }
}
