import { Buffer } from 'node:buffer'
import { bytesOfTarget } from '../events/target.js'
import { memoryBytes } from '../util/text.js'
import type { Held } from '../util/memory-budget.js'
import type { GapReason, Message, Target } from '../log/broker.js'
import { Chunk } from '../wire/chunk.js'
import { conflationKey } from '../events/conflation.js'
import { formatPlace } from '../log/cursor.js'
import { encodeControl, encodeEvent, encodePlace, EventPriority } from '../events/event.js'

/** What a waiting frame takes beside its texts and its target, in bytes: objects, and its places in line. */
export const FRAME_BYTES = 400
/** What a batch takes beside its frames. */
const BATCH_BYTES = 100

/** The encoded form of one event, made once and shared by all connections of this node that get it. */
export class Frame implements Held {
  /** The `id:` line of delivery in log order, or of the application's own id; empty for an ephemeral event. */
  readonly head: string
  /** The rest of the block. */
  readonly text: string
  readonly priority: EventPriority
  /** Place in the log, 0 when there is none. */
  readonly seq: number
  /** See `conflationKey`. */
  readonly key: string | null
  /** Whom it is for; null for what was made for the one that has it. */
  readonly target: Target | null
  /** Of what is written: head and text. */
  readonly textBytes: number
  /** Of what is kept for as long as it waits: text, key and target. */
  readonly bytes: number
  /** Whether it has come through the log, in its order, ephemeral or not; what was made on this node for this node has not. */
  readonly fromLog: boolean
  holders = 0

  constructor (head: string, text: string, priority: EventPriority, seq = 0, key: string | null = null, target: Target | null = null, textBytes = Buffer.byteLength(text), fromLog = false) {
    this.head = head
    this.text = text
    this.priority = priority
    this.seq = seq
    this.key = key
    this.target = target
    this.fromLog = fromLog
    this.textBytes = head.length + textBytes
    this.bytes = head.length + memoryBytes(text.length, textBytes) + (key === null ? 0 : key.length) + (target === null ? 0 : bytesOfTarget(target))
  }

  static ofMessage (message: Message, epoch: string, fromLog = message.seq > 0): Frame {
    const { event, data, priority, seq, target, retry } = message
    const head = seq === 0 ? '' : encodePlace(formatPlace(epoch, seq))
    const text = encodeEvent(event, data, retry)
    // The text itself would have to be made one string to be measured; what is in it beside name and data is ASCII.
    const bytes = text.length + Buffer.byteLength(event) - event.length + Buffer.byteLength(data) - data.length
    return new Frame(head, text, priority, seq, conflationKey(message), target, bytes, fromLog)
  }

  /** Its place is told with it: the one where the stream goes on. */
  static ofGap (reason: GapReason, lastEventId: string): Frame {
    return new Frame('', encodeControl('gap', { reason, lastEventId }), EventPriority.CRITICAL)
  }
}

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
