import type { Held } from '../util/memory-budget.js'
import { Chunk } from '../wire/chunk.js'
import { FRAME_BYTES, type Frame } from './frame.js'

/** What a batch takes beside its frames. */
const BATCH_BYTES = 100

/**
 * The frames that wait together for the end of a turn, in order. Connections that were given the same frames hold the
 * same batch, and so write the same bytes: a batch with one more frame is made once and found again by the next.
 */
export class Batch implements Held {
  readonly parent: Batch | null
  readonly frame: Frame | null
  readonly count: number
  /** Of its chunk, unless a key replaces some of it. */
  readonly textBytes: number
  readonly bytes: number
  holders = 0
  #next: Batch | null = null
  #chunk: Chunk | null = null
  #events: number

  constructor (parent: Batch | null = null, frame: Frame | null = null) {
    this.parent = parent
    this.frame = frame
    this.count = this.#events = frame === null ? 0 : parent!.count + 1
    this.textBytes = frame === null ? 0 : parent!.textBytes + frame.textBytes
    this.bytes = frame === null ? 0 : parent!.bytes + frame.bytes + FRAME_BYTES + BATCH_BYTES
  }

  /** This batch and one more frame. */
  with (frame: Frame): Batch {
    const next = this.#next
    if (next !== null && next.frame === frame) return next
    return (this.#next = new Batch(this, frame))
  }

  /** Its last holder has left: batches that were made on the way to it, and are held by nobody, are not kept to be found again. */
  prune (): void {
    let batch: Batch = this
    while (batch.parent !== null && batch.parent.parent !== null && batch.parent.holders === 0) batch = batch.parent
    if (batch.parent !== null && batch.parent.#next === batch) batch.parent.#next = null
  }

  get frames (): Frame[] {
    const frames = new Array<Frame>(this.count)
    let batch: Batch = this
    for (let i = this.count - 1; i >= 0; i--) {
      frames[i] = batch.frame!
      batch = batch.parent!
    }
    return frames
  }

  /** The bytes of all its frames, in the order they were published: nothing waited, so nothing overtakes. */
  get chunk (): Chunk {
    return (this.#chunk ??= this.#encode())
  }

  /** How many events its chunk carries, once it is made: of those with the same key the newest. */
  get events (): number {
    return this.#events
  }

  #encode (): Chunk {
    const frames = this.frames
    if (!frames.some(frame => frame.key !== null)) return new Chunk(textOf(frames), this.textBytes)
    const newest = newestOfEachKey(frames)
    this.#events = newest.length
    return new Chunk(textOf(newest))
  }
}

function textOf (frames: readonly Frame[]): string {
  let text = ''
  for (const frame of frames) text += frame.head + frame.text
  return text
}

/** Conflation: of the frames with the same key only the last is worth sending. */
function newestOfEachKey (frames: readonly Frame[]): Frame[] {
  const newest = new Map<string, Frame>()
  for (const frame of frames) if (frame.key !== null) newest.set(frame.key, frame)
  return frames.filter(frame => frame.key === null || newest.get(frame.key) === frame)
}
