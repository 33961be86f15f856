import type { Broker, GapReason, Page } from '../log/broker.js'
import type { Message } from '../events/message.js'
import type { Target } from '../events/target.js'
import { BrokerUnavailable } from '../errors.js'
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
/** Of a batch, for each connection that waits with it, when memory is short. */
const SHARE_BYTES = 1024
/** A page ends after about as many bytes: no more than a socket takes at once. A client that takes nothing keeps nothing. */
const PAGE_BYTES = 16 * 1024

/**
 * What one connection has yet to be sent, and its cursor. Usually that is no more than the batch of this turn;
 * a client that is slow, or has come back, has an outbox beside it, which is refilled from the log.
 */
export class Backlog {
  readonly #context: ConnectionContext
  #batch: Batch | null = null
  #outbox: Outbox | null = null
  #dropped = 0
  #reading = false
  /** While this node has yet to reach the client's cursor, or to learn that no node has; nothing of the log is taken meanwhile. */
  #awaited: Resumption | null = null
  /** Bytes a returning client may yet be sent of what it has missed. */
  #allowance = Infinity

  constructor (context: ConnectionContext) {
    this.#context = context
  }

  get empty (): boolean {
    return this.#outbox === null && this.#batch === null
  }

  /** Whether frames wait in an outbox, or are to be read from the log: then deliveries do not go out as they come. */
  get behind (): boolean {
    return this.#outbox !== null
  }

  get lagging (): boolean {
    return this.#awaited !== null || (this.#outbox !== null && this.#outbox.lagging !== null)
  }

  get bytes (): number {
    return (this.#outbox?.bytes ?? 0) + (this.#batch?.bytes ?? 0)
  }

  /** What the batch of this turn has to write. */
  get textBytes (): number {
    return this.#batch?.textBytes ?? 0
  }

  /** Ephemeral frames dropped so far. */
  get dropped (): number {
    return this.#dropped + (this.#outbox?.dropped ?? 0)
  }

  /**
   * The cursor that the client would resume from now; null while a gap event is pending: a client that knew a later cursor
   * would never hear of the gap.
   */
  get cursor (): string | null {
    const { epoch, position } = this.#context.eventLog
    if (this.#awaited !== null) return this.#awaited.cursor
    if (this.#outbox === null) return formatCursor(epoch, position)
    const lanes = this.#outbox.place(position)
    return lanes === null ? null : formatLanes(epoch, lanes)
  }

  /** Whether the frames of this turn are to be written before they are joined by this one. */
  overflows (frame: Frame): boolean {
    const batch = this.#batch
    if (batch === null) return false
    // Over the memory budget, a batch held by this connection alone is written at once; of a batch held by few, each has a small share.
    return batch.bytes + frame.bytes > this.#context.outboxBytes || (batch.bytes > (batch.holders - 1) * SHARE_BYTES && this.#context.budget.exceeded)
  }

  /**
   * Takes a frame. False when it was dropped.
   * @param blocked whether it cannot be written at the end of this turn.
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
      // What comes before the cursor the client has had; an ephemeral event would have come before the client did, had this node not been late.
      if (awaited.gap !== null) return frame.seq > 0
      this.#begin(awaited, null)
    }
    return this.#createOutbox().push(frame, this.#context.eventLog.position)
  }

  /** The frames of this turn, to be written now. */
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

  /** The frames of this turn cannot be written: they wait in the outbox. */
  spill (): void {
    const batch = this.takeBatch()
    if (batch === null) return
    const outbox = this.#createOutbox()
    const frames = batch.frames
    // Each is pushed as if the log stood where it did when it came.
    let position = (frames.find(({ seq }) => seq > 0)?.seq ?? this.#context.eventLog.position + 1) - 1
    for (const frame of frames) {
      outbox.push(frame, position)
      if (frame.seq > 0) position = frame.seq
    }
  }

  #createOutbox (): Outbox {
    return (this.#outbox ??= new Outbox(this.#context.outboxBytes, this.#context.budget))
  }

  /** The text of the next blocks of the outbox, about `bytes` of them; null when there are none. */
  take (bytes: number): { text: string, frames: readonly Frame[] } | null {
    if (this.#outbox === null) return null
    const taken = this.#outbox.take(bytes, this.#context.eventLog.epoch, this.#context.eventLog.position)
    return taken.frames.length === 0 ? null : taken
  }

  /** Whether there is something to read from the log. */
  get wantsPage (): boolean {
    return this.lagging && !this.#reading
  }

  /** Rights have changed: what is not for this connection any more does not wait for it either. */
  sift (isTarget: (target: Target) => boolean): void {
    this.#outbox?.sift(isTarget)
    const batch = this.takeBatch()
    if (batch === null) return
    for (const frame of batch.frames) if (frame.target === null || isTarget(frame.target)) this.#join((this.#batch ?? this.#context.flusher.root).with(frame))
  }

  /** Nothing waits and nothing is missed: what comes next goes out as it comes. */
  settle (): void {
    if (this.#awaited !== null || this.#outbox?.idle !== true) return
    this.#dropOutbox()
    // It is level with the log: from here on it is not a replay.
    this.#allowance = Infinity
  }

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

  /** Begins at a client's cursor, or with the gap that says why that is not possible. */
  resume (lastEventId: string): void {
    const { eventLog: { shared }, options: { maxReplayBytes } } = this.#context
    if (maxReplayBytes > 0) this.#allowance = maxReplayBytes
    const cursor = parseCursor(lastEventId)
    if (cursor === null) return this.#createOutbox().skip(gapFrame('malformed', lastEventId))
    const resumption = new Resumption(this.#context, cursor, lastEventId)
    const { gap } = resumption
    if (gap === null || !shared) return this.#begin(resumption, gap)
    // Another node may have come further than this one: the log is asked.
    this.#awaited = resumption
    this.#createOutbox()
  }

  #begin (resumption: Resumption, gap: GapReason | null): void {
    this.#awaited = null
    resumption.begin(gap, () => this.#createOutbox())
  }

  /** Resolves when this node has reached the client's cursor, or the log has told that there is no such place. */
  async #reach (broker: Broker, awaited: Resumption): Promise<void> {
    const gap = await awaited.ask(broker)
    if (this.#awaited !== awaited) return
    if (gap === null && awaited.gap !== null) throw new BrokerUnavailable('has not delivered all that it has read')
    this.#begin(awaited, gap)
  }

  /** The log has lost its continuity: what waits of it is void. */
  fallOut (reason: GapReason): void {
    // Nothing of it waits here: whether anything is gone that the client has not seen depends on where the log goes on.
    if (this.#awaited !== null) return
    this.spill()
    this.#createOutbox().restart(gapFrame(reason, ''))
  }

  /**
   * Reads the next page of what was missed.
   * @param turns the time that may be spent on it now; the rest of the page waits for the next turn.
   * @param wants whether a message is for this connection, as things stand now.
   */
  async readPage (broker: Broker, turns: Turns, wants: (message: Message) => boolean): Promise<void> {
    const { eventLog } = this.#context
    if (this.#reading) return
    this.#reading = true
    try {
      if (this.#awaited !== null) return await this.#reach(broker, this.#awaited)
      const lane = this.#outbox?.ask(eventLog.newest, eventLog.position) ?? null
      if (lane === null) return
      const page = await broker.read({ epoch: eventLog.epoch, ...lane, limit: PAGE_EVENTS })
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
    // While the page was read the lane may have been emptied; and `wants` asks the application, which may do anything.
    const moved = (): boolean => this.#outbox !== outbox || outbox?.isReading(priority, after) !== true
    if (outbox === null || moved()) return
    if (page.gap !== undefined) return outbox.skip(gapFrame(page.gap, this.cursor ?? ''))
    let bytes = 0
    for (const message of page.messages) {
      // What has not been delivered yet will be.
      if (message.seq > eventLog.position) break
      if (bytes >= PAGE_BYTES) return
      if (turns.over) {
        await turns.next()
        // The application is not asked about a stream that has ended meanwhile.
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
