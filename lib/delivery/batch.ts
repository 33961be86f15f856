import type { Held } from '../util/memory-budget.js'
import { Chunk } from '../wire/chunk.js'
import { FRAME_BYTES, textOf, type Frame } from './frame.js'

/** Memory of a batch beside its frames, in bytes. */
const BATCH_BYTES = 100

/**
 * The frames that connections write together at the end of a turn, in order. Connections with the same frames hold the same batch
 * and write the same bytes. Batches form a tree: a batch plus one frame is created once, and found again for the next connection.
 */
export class Batch implements Held {
  /** The batch without the last frame; null for the root. */
  readonly parent: Batch | null
  /** The last frame; null for the root. */
  readonly frame: Frame | null
  /** Number of frames. */
  readonly count: number
  /** Size of the encoded frames in bytes. Conflation can make the chunk smaller. */
  readonly textBytes: number
  /** Memory of the batch and its frames in bytes. */
  readonly bytes: number
  /** Number of connections that hold the batch. Only the budget changes it. */
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

  /** Returns the batch with one more frame. */
  with (frame: Frame): Batch {
    const next = this.#next
    if (next !== null && next.frame === frame) return next
    return (this.#next = new Batch(this, frame))
  }

  /** Unlinks the batch and its ancestors without holders. Called when the last holder has released the batch. */
  prune (): void {
    let batch: Batch = this
    while (batch.parent !== null && batch.parent.parent !== null && batch.parent.holders === 0) batch = batch.parent
    if (batch.parent !== null && batch.parent.#next === batch) batch.parent.#next = null
  }

  /** The frames in order, as a new array. */
  get frames (): Frame[] {
    const frames = new Array<Frame>(this.count)
    let batch: Batch = this
    for (let i = this.count - 1; i >= 0; i--) {
      frames[i] = batch.frame!
      batch = batch.parent!
    }
    return frames
  }

  /** The encoded frames, made once. Priorities do not reorder them: a batch is no backlog. */
  get chunk (): Chunk {
    return (this.#chunk ??= this.#encode())
  }

  /** Number of events in the chunk after it was made. Of events with the same key, only the newest is counted. */
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

/** Conflation: returns the frames without those that a later frame with the same key replaces. */
function newestOfEachKey (frames: readonly Frame[]): Frame[] {
  const newest = new Map<string, Frame>()
  for (const frame of frames) if (frame.key !== null) newest.set(frame.key, frame)
  return frames.filter(frame => frame.key === null || newest.get(frame.key) === frame)
}
