import type { Broker, GapReason, Page } from '../log/broker.js'
import type { Message } from '../events/message.js'
import type { Target } from '../events/target.js'
import { BrokerUnavailable } from '../errors.js'
import type { Interest } from '../log/log-index.js'
import { formatLanes, formatCursor, parseCursor } from '../log/cursor.js'
import type { EventPriority } from '../events/event-rules.js'
import type { Frame } from '../delivery/frame.js'
import { type Batch } from '../delivery/batch.js'
import type { Turns } from '../delivery/replay-scheduler.js'
import type { ConnectionContext } from './context.js'
import { gapFrame } from './control-frames.js'
import { Outbox } from './outbox.js'
import { Resumption } from './resumption.js'

const PAGE_EVENTS = 128
/** Bytes of a batch that each other holder justifies when the memory budget is exceeded. */
const SHARE_BYTES = 1024
/** Approximate maximum size of a page in bytes. A socket write is not larger, so further events would wait in memory. */
const PAGE_BYTES = 16 * 1024

/**
 * The unsent frames of one connection, and its cursor. Usually they are the batch of this turn. A slow or reconnecting client also has
 * an outbox, which is refilled from the log.
 */
export class Backlog {
  readonly #context: ConnectionContext
  #batch: Batch | null = null
  #outbox: Outbox | null = null
  #dropped = 0
  #reading = false
  /** The resumption from a cursor that this node has not reached; null otherwise. Logged events are not queued until it begins. */
  #awaited: Resumption | null = null
  /** Bytes of missed events that the client can still receive; Infinity without a limit, and after the replay. */
  #allowance = Infinity

  constructor (context: ConnectionContext) {
    this.#context = context
  }

  /** Whether no frames wait and the connection does not lag. */
  get empty (): boolean {
    return this.#outbox === null && this.#batch === null
  }

  /** Whether the connection has an outbox: new frames wait behind those that are queued or must be read from the log. */
  get behind (): boolean {
    return this.#outbox !== null
  }

  /** Whether events must be read from the log, or the cursor of the client is ahead of this node. */
  get lagging (): boolean {
    return this.#awaited !== null || (this.#outbox !== null && this.#outbox.lagging !== null)
  }

  /** Memory of the waiting frames in bytes. */
  get bytes (): number {
    return (this.#outbox?.bytes ?? 0) + (this.#batch?.bytes ?? 0)
  }

  /** Size of the text in the batch of this turn, in bytes. */
  get textBytes (): number {
    return this.#batch?.textBytes ?? 0
  }

  /** Number of ephemeral frames dropped so far. */
  get dropped (): number {
    return this.#dropped + (this.#outbox?.dropped ?? 0)
  }

  /**
   * The cursor from which the client would resume now. Null while a gap event is pending: a client with a later cursor would miss the
   * gap.
   */
  get cursor (): string | null {
    const { epoch, position } = this.#context.eventLog
    if (this.#awaited !== null) return this.#awaited.cursor
    if (this.#outbox === null) return formatCursor(epoch, position)
    const lanes = this.#outbox.place(position)
    return lanes === null ? null : formatLanes(epoch, lanes)
  }

  /** Returns whether the batch of this turn must be written before this frame is added to it. */
  overflows (frame: Frame): boolean {
    const batch = this.#batch
    if (batch === null) return false
    // Over the memory budget, a batch is written early unless many connections share it. A batch with one holder is always written.
    return batch.bytes + frame.bytes > this.#context.outboxBytes || (batch.bytes > (batch.holders - 1) * SHARE_BYTES && this.#context.budget.exceeded)
  }

  /**
   * Queues a frame. Returns false if it was dropped.
   * @param blocked whether the connection cannot write at the end of this turn
   */
  receive (frame: Frame, blocked: boolean): boolean {
    if (blocked) this.spill()
    if (blocked || this.#outbox !== null) return this.#queue(frame)
    this.#join((this.#batch ?? this.#context.flusher.root).with(frame))
    return true
  }

  #queue (frame: Frame): boolean {
    const awaited = this.#awaited
    if (awaited !== null && frame.fromLog) {
      // This node is behind the cursor: the client has received these logged events. Ephemeral events are dropped, because they are
      // older than the connection.
      if (awaited.gap !== null) return frame.seq > 0
      this.#begin(awaited, null)
    }
    return this.#createOutbox().push(frame, this.#context.eventLog.position)
  }

  /** Removes and returns the batch of this turn; null if there is none. */
  takeBatch (): Batch | null {
    const batch = this.#batch
    if (batch === null) return null
    this.#join(null)
    if (batch.holders === 0) batch.prune()
    return batch
  }

  #join (batch: Batch | null): void {
    if (batch !== null) this.#context.budget.hold(batch)
    if (this.#batch !== null) this.#context.budget.release(this.#batch)
    this.#batch = batch
  }

  /** Moves the frames of this turn to the outbox, because they cannot be written. */
  spill (): void {
    const batch = this.takeBatch()
    if (batch === null) return
    const outbox = this.#createOutbox()
    const frames = batch.frames
    // Each frame is pushed with the position at its delivery: an ephemeral frame must stay behind the events logged before it.
    let position = (frames.find(({ seq }) => seq > 0)?.seq ?? this.#context.eventLog.position + 1) - 1
    for (const frame of frames) {
      outbox.push(frame, position)
      if (frame.seq > 0) position = frame.seq
    }
  }

  #createOutbox (): Outbox {
    return (this.#outbox ??= new Outbox(this.#context.outboxBytes, this.#context.budget))
  }

  /** Removes and returns the next blocks of the outbox, about `bytes` bytes; null if there are none. */
  take (bytes: number): { text: string, frames: readonly Frame[] } | null {
    if (this.#outbox === null) return null
    const taken = this.#outbox.take(bytes, this.#context.eventLog.epoch, this.#context.eventLog.position)
    return taken.frames.length === 0 ? null : taken
  }

  /** Whether a page must be read from the log, and no read is pending. */
  get wantsPage (): boolean {
    return this.lagging && !this.#reading
  }

  /** Removes frames whose target no longer includes this connection. */
  sift (isTarget: (target: Target) => boolean): void {
    this.#outbox?.sift(isTarget)
    const batch = this.takeBatch()
    if (batch === null) return
    for (const frame of batch.frames) if (frame.target === null || isTarget(frame.target)) this.#join((this.#batch ?? this.#context.flusher.root).with(frame))
  }

  /** Drops the outbox if it is empty and the connection has caught up: further frames are written without it. */
  settle (): void {
    if (this.#awaited !== null || this.#outbox?.idle !== true) return
    this.#dropOutbox()
    // The replay is complete: `maxReplayBytes` no longer applies.
    this.#allowance = Infinity
  }

  /** Discards all waiting frames. */
  clear (): void {
    this.#awaited = null
    this.takeBatch()
    this.#dropOutbox()
  }

  #dropOutbox (): void {
    const outbox = this.#outbox
    if (outbox === null) return
    this.#dropped += outbox.dropped
    outbox.discard()
    this.#outbox = null
  }

  /** Begins at the client's cursor, or with a gap event if that is not possible. */
  resume (lastEventId: string): void {
    const { eventLog: { shared }, options: { maxReplayBytes } } = this.#context
    if (maxReplayBytes > 0) this.#allowance = maxReplayBytes
    const cursor = parseCursor(lastEventId)
    if (cursor === null) return this.#createOutbox().skip(gapFrame('malformed', lastEventId))
    const resumption = new Resumption(this.#context, cursor, lastEventId)
    const { gap } = resumption
    if (gap === null || !shared) return this.#begin(resumption, gap)
    // Another node can be ahead of this one, so the log is read before a gap is reported.
    this.#awaited = resumption
    this.#createOutbox()
  }

  #begin (resumption: Resumption, gap: GapReason | null): void {
    this.#awaited = null
    resumption.begin(gap, () => this.#createOutbox())
  }

  /** Begins the resumption if the log has reported a gap or this node has reached the cursor. Rejects otherwise, to try again later. */
  async #reach (broker: Broker, awaited: Resumption): Promise<void> {
    const gap = await awaited.ask(broker)
    if (this.#awaited !== awaited) return
    if (gap === null && awaited.gap !== null) throw new BrokerUnavailable('is ahead of this node')
    this.#begin(awaited, gap)
  }

  /** Handles lost continuity of the log: waiting logged frames are discarded, and a gap event is queued. */
  fallOut (reason: GapReason): void {
    // No logged frame waits in this state. Whether the client missed events is known when the resumption begins.
    if (this.#awaited !== null) return
    this.spill()
    this.#createOutbox().restart(gapFrame(reason, ''))
  }

  /**
   * Reads the next page of missed events into the outbox. Rejects if the log cannot be read.
   * @param interest the connection, as the log knows it
   * @param turns limits the time in each turn of the event loop; the rest of the page waits for the next turn
   * @param wants returns whether the connection receives a message
   */
  async readPage (broker: Broker, turns: Turns, interest: Interest, wants: (message: Message) => boolean): Promise<void> {
    const { eventLog } = this.#context
    if (this.#reading) return
    this.#reading = true
    try {
      if (this.#awaited !== null) return await this.#reach(broker, this.#awaited)
      const lane = this.#outbox?.ask(eventLog.newest, eventLog.position) ?? null
      if (lane === null) return
      const page = await broker.read({ epoch: eventLog.epoch, ...lane, limit: PAGE_EVENTS, interest })
      await this.#takePage(page, lane, turns, wants)
    } finally {
      this.#reading = false
    }
  }

  async #takePage (page: Page, lane: { priority: EventPriority, after: number }, turns: Turns, wants: (message: Message) => boolean): Promise<void> {
    const { eventLog, frames } = this.#context
    const outbox = this.#outbox
    const { priority } = lane
    let { after } = lane
    // The outbox can change while the page is read. `wants` calls code of the application, which can change it as well.
    const moved = (): boolean => this.#outbox !== outbox || outbox?.isReading(priority, after) !== true
    if (outbox === null || moved()) return
    if (page.gap !== undefined) return outbox.skip(gapFrame(page.gap, this.cursor ?? ''))
    let bytes = 0
    for (const message of page.messages) {
      // Later messages are not delivered on this node yet. The connection receives them live.
      if (message.seq > eventLog.position) break
      if (bytes >= PAGE_BYTES) return
      if (turns.over) {
        await turns.next()
        // Without this check, code of the application would be called for a stream that has ended.
        if (moved()) return
      }
      const wanted = wants(message)
      if (moved()) return
      if (wanted) {
        const frame = frames.of(message, eventLog.epoch)
        if (frame.textBytes > this.#allowance) return outbox.skip(gapFrame('limit', this.cursor ?? ''))
        if (!outbox.refill(frame)) return
        this.#allowance -= frame.textBytes
        bytes += frame.bytes
      }
      after = message.seq
      outbox.advance(priority, after, eventLog.position)
    }
    outbox.advance(priority, Math.min(page.next, eventLog.position), eventLog.position)
  }
}
