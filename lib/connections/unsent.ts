import type { Batch } from '../delivery/batch.js'
import type { Frame } from '../delivery/frame.js'
import type { DropReason } from '../diagnostics/channels.js'
import type { Target } from '../events/target.js'
import { CatchUp, type CatchUpOwner } from './catch-up.js'
import type { ConnectionContext } from './context.js'

/** Bytes of a batch that each other holder justifies when the memory budget is exceeded. */
const SHARE_BYTES = 1024

/** The connection whose frames wait. */
export interface UnsentOwner {
  readonly clientId: string
  /** Whether the headers are sent, and the stream is not closing. */
  readonly isConnected: boolean
}

/** The unsent frames of one connection: the batch of this turn, or the outbox of a connection that is behind. */
export abstract class Unsent implements CatchUpOwner {
  protected readonly context: ConnectionContext
  protected readonly owner: UnsentOwner
  #batch: Batch | null = null
  protected catchUp: CatchUp | null = null
  /** Number of ephemeral frames that were dropped and are not counted elsewhere. */
  protected lost = 0

  constructor (context: ConnectionContext, owner: UnsentOwner) {
    this.context = context
    this.owner = owner
  }

  /** See `CatchUpOwner`. */
  get clientId (): string {
    return this.owner.clientId
  }

  /** See `OutboxOwner`. */
  onDrop (reason: DropReason): void {
    this.context.telemetry.onDrop(this.clientId, reason)
  }

  /** See `OutboxOwner`. */
  onLag (): void {
    this.context.telemetry.onLag(this.clientId)
  }

  /** Whether no frames wait and the connection does not lag. */
  get empty (): boolean {
    return this.catchUp === null && this.#batch === null
  }

  /** Whether the connection has an outbox: new frames wait behind those that are queued or must be read from the log. */
  get behind (): boolean {
    return this.catchUp !== null
  }

  /** Memory of the waiting frames in bytes. */
  get bytes (): number {
    return (this.catchUp?.outbox.bytes ?? 0) + (this.#batch?.bytes ?? 0)
  }

  /** Number of ephemeral frames dropped so far. */
  get dropped (): number {
    return this.lost + (this.catchUp?.outbox.dropped ?? 0)
  }

  /** Size of the text in the batch of this turn, in bytes. */
  get textBytes (): number {
    return this.#batch?.textBytes ?? 0
  }

  /** Returns whether the batch of this turn must be written before this frame is added to it. */
  overflows (frame: Frame): boolean {
    const batch = this.#batch
    if (batch === null) return false
    // Over the memory budget, a batch is written early unless many connections share it. A batch with one holder is always written.
    return batch.bytes + frame.bytes > this.context.outboxBytes || (batch.bytes > (batch.holders - 1) * SHARE_BYTES && this.context.budget.exceeded)
  }

  /**
   * Queues a frame. Returns false if it was dropped.
   * @param blocked whether the connection cannot write at the end of this turn
   */
  receive (frame: Frame, blocked: boolean): boolean {
    if (blocked) this.spill()
    if (blocked || this.catchUp !== null) return this.queue(frame)
    this.#join((this.#batch ?? this.context.flusher.root).with(frame))
    return true
  }

  /** Queues a frame that cannot be written in this turn. Returns false if it was dropped. */
  protected abstract queue (frame: Frame): boolean

  /** Removes and returns the batch of this turn; null if there is none. */
  takeBatch (): Batch | null {
    const batch = this.#batch
    if (batch === null) return null
    this.#join(null)
    if (batch.holders === 0) batch.prune()
    return batch
  }

  #join (batch: Batch | null): void {
    if (batch !== null) this.context.budget.hold(batch)
    if (this.#batch !== null) this.context.budget.release(this.#batch)
    this.#batch = batch
  }

  /** Moves the frames of this turn to the outbox, because they cannot be written. */
  spill (): void {
    const batch = this.takeBatch()
    if (batch === null) return
    const { outbox } = this.fallBehind()
    const frames = batch.frames
    // Each frame is pushed with the position at its delivery: an ephemeral frame must stay behind the events logged before it.
    let position = (frames.find(({ seq }) => seq > 0)?.seq ?? this.context.eventLog.position + 1) - 1
    for (const frame of frames) {
      outbox.push(frame, position)
      if (frame.seq > 0) position = frame.seq
    }
  }

  /** Returns the outbox with its reader, created if needed. */
  protected fallBehind (): CatchUp {
    return (this.catchUp ??= new CatchUp(this.context, this))
  }

  /** Replaces the outbox with its reader. Its frames are discarded. `result`: how its replay ends. */
  protected replace (catchUp: CatchUp | null, result: 'complete' | 'closed' = 'complete'): void {
    if (this.catchUp !== null) {
      this.lost += this.catchUp.outbox.dropped
      this.catchUp.discard(result)
    }
    this.catchUp = catchUp
  }

  /** Removes frames whose target no longer includes this connection. */
  sift (isTarget: (target: Target) => boolean): void {
    this.catchUp?.outbox.sift(isTarget)
    const batch = this.takeBatch()
    if (batch === null) return
    for (const frame of batch.frames) if (frame.target === null || isTarget(frame.target)) this.#join((this.#batch ?? this.context.flusher.root).with(frame))
  }

  /** Discards all waiting frames. */
  clear (): void {
    this.takeBatch()
    this.replace(null, 'closed')
  }
}
