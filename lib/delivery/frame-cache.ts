import type { Message } from '../log/broker.js'
import { Frame } from './frame.js'

const SLOTS = 1024
/** A larger one is made again for each reader: the cache holds 4 MiB of text at most. */
const MAX_FRAME_BYTES = 4096

/** Frames of messages that were read from the log, shared by all who read the same stretch of it at about the same time. */
export class FrameCache {
  readonly #frames = new Array<Frame | null>(SLOTS).fill(null)
  #epoch = ''

  of (message: Message, epoch: string): Frame {
    if (epoch !== this.#epoch) {
      this.#frames.fill(null)
      this.#epoch = epoch
    }
    const slot = message.seq % SLOTS
    const cached = this.#frames[slot]!
    if (cached?.seq === message.seq) return cached
    const frame = Frame.ofMessage(message, epoch)
    if (frame.bytes <= MAX_FRAME_BYTES) this.#frames[slot] = frame
    return frame
  }
}
