import type { Broker, GapReason, Page, Target } from './broker.js'
import { formatCursor, formatPlace, parseCursor } from './cursor.js'
import { EventPriority } from './event.js'
import { Frame, type Batch } from './frame.js'
import { Outbox, type Budget } from './outbox.js'

/** What a backlog needs to know of its node. */
export interface BacklogHost {
  readonly epoch: string
  /** Newest sequence number that has been delivered on this node. */
  readonly position: number
  /** The empty batch that all batches of this turn grow from. */
  readonly rootBatch: Batch
  readonly outboxBytes: number
  readonly budget: Budget
  readonly maxReplayEvents: number
}

const PAGE_EVENTS = 128

/**
 * What one connection has yet to be sent, and its place in the log. Usually that is no more than the batch of this turn;
 * a client that is slow, or has come back, has an outbox beside it, which is refilled from the log.
 */
export class Backlog {
  readonly #host: BacklogHost
  #batch: Batch | null = null
  #outbox: Outbox | null = null
  #dropped = 0
  #reading = false

  constructor (host: BacklogHost) {
    this.#host = host
  }

  get empty (): boolean {
    return this.#outbox === null && this.#batch === null
  }

  /** Whether frames wait in an outbox, or are to be read from the log: then deliveries do not go out as they come. */
  get behind (): boolean {
    return this.#outbox !== null
  }

  get lagging (): boolean {
    return this.#outbox !== null && this.#outbox.lagging !== null
  }

  get bytes (): number {
    return (this.#outbox?.bytes ?? 0) + (this.#batch?.bytes ?? 0)
  }

  /** Ephemeral frames dropped so far. */
  get dropped (): number {
    return this.#dropped + (this.#outbox?.dropped ?? 0)
  }

  /** Up to where a client that leaves now has seen the log, or nothing in it was for it. */
  get cursor (): string {
    const { epoch, position } = this.#host
    return this.#outbox === null ? formatPlace(epoch, position) : formatCursor(epoch, this.#outbox.cursor(position))
  }

  /** The cursor as it may be told; null while a gap waits, since a client that knows a later place would never hear of it. */
  get place (): string | null {
    const waiting = this.#outbox?.hasGap === true || this.#batch?.frames.some(({ gap }) => gap) === true
    return waiting ? null : this.cursor
  }

  /** Takes a frame. False when it was dropped. */
  receive (frame: Frame): boolean {
    if (this.#outbox !== null) return this.#outbox.push(frame)
    this.#batch = (this.#batch ?? this.#host.rootBatch).with(frame)
    if (this.#batch.bytes > this.#host.outboxBytes) this.spill()
    return true
  }

  /** The frames of this turn, to be written now. */
  takeBatch (): Batch | null {
    const batch = this.#batch
    this.#batch = null
    return batch
  }

  /** The frames of this turn cannot be written: they wait in the outbox. */
  spill (): void {
    if (this.#batch === null) return
    const outbox = (this.#outbox ??= new Outbox(this.#host.outboxBytes, this.#host.budget))
    for (const frame of this.#batch.frames) outbox.push(frame)
    this.#batch = null
  }

  /** The text of the next blocks of the outbox, about `bytes` of them; null when there are none. */
  take (bytes: number): { text: string, count: number } | null {
    if (this.#outbox === null) return null
    const taken = this.#outbox.take(bytes, this.#host.epoch, this.#host.position)
    return taken.count === 0 ? null : taken
  }

  /** Whether there is something to read from the log, and room for it. */
  get wantsPage (): boolean {
    return this.#outbox !== null && this.#outbox.roomy && this.#outbox.lagging !== null
  }

  /** Rights have changed: what is not for this connection any more does not wait for it either. */
  sift (isTarget: (target: Target) => boolean): void {
    this.#outbox?.sift(isTarget)
    const batch = this.#batch
    if (batch === null) return
    this.#batch = null
    for (const frame of batch.frames) if (frame.target === null || isTarget(frame.target)) this.#batch = (this.#batch ?? this.#host.rootBatch).with(frame)
  }

  /** Nothing waits and nothing is missed: what comes next goes out as it comes. */
  settle (): void {
    if (this.#outbox?.idle === true) this.#dropOutbox()
  }

  clear (): void {
    this.#batch = null
    this.#dropOutbox()
  }

  #dropOutbox (): void {
    const outbox = this.#outbox
    if (outbox === null) return
    this.#dropped += outbox.dropped
    outbox.discard()
    this.#outbox = null
  }

  /** Begins at a client's cursor, or with the gap that says why that is not possible. */
  resume (lastEventId: string): void {
    const { epoch, position, maxReplayEvents, outboxBytes, budget } = this.#host
    const cursor = parseCursor(lastEventId)
    const oldest = cursor === null ? 0 : Math.min(...cursor.lanes)
    let gap: GapReason | null = null
    if (cursor === null) gap = 'malformed'
    else if (cursor.epoch !== epoch) gap = 'epoch'
    else if (Math.max(...cursor.lanes) > position) gap = 'unknown'
    else if (maxReplayEvents > 0 && position - oldest > maxReplayEvents) gap = 'limit'
    else if (oldest < position) (this.#outbox = new Outbox(outboxBytes, budget)).startAt(cursor.lanes, position)
    if (gap !== null) this.#receiveGap(gap, lastEventId)
  }

  /** The log has lost its continuity: what waits of it is void. */
  fallOut (reason: GapReason): void {
    this.clear()
    this.#receiveGap(reason, '')
  }

  #receiveGap (reason: GapReason, lastEventId: string): void {
    const { epoch, position } = this.#host
    this.receive(Frame.ofGap(reason, lastEventId, EventPriority.CRITICAL, position, epoch))
  }

  /**
   * Reads the next page of what was missed.
   * @param wants whether a message is for this connection, as things stand now.
   */
  async readPage (broker: Broker, wants: (message: Page['messages'][number]) => boolean): Promise<void> {
    const host = this.#host
    const lane = this.#outbox?.lagging ?? null
    if (lane === null || this.#reading) return
    this.#reading = true
    try {
      const page = await broker.read({ epoch: host.epoch, after: lane.after, priority: lane.priority, limit: PAGE_EVENTS })
      const outbox = this.#outbox
      const now = outbox?.lagging ?? null
      // While it was read the lane may have been emptied, or the connection may have ended.
      if (outbox === null || now?.priority !== lane.priority || now.after !== lane.after) return
      if (page.gap !== undefined) return outbox.skip(Frame.ofGap(page.gap, this.cursor, lane.priority, host.position, host.epoch))
      for (const message of page.messages) {
        // What has not been delivered yet will be.
        if (message.seq > host.position) break
        if (wants(message) && !outbox.refill(Frame.ofMessage(message, host.epoch))) return
        outbox.advance(lane.priority, message.seq, host.position)
      }
      outbox.advance(lane.priority, Math.min(page.next, host.position), host.position)
    } finally {
      this.#reading = false
    }
  }
}
