import type { MemoryBudget } from '../util/memory-budget.js'
import type { Target } from '../events/target.js'
import { formatLanes, type Lanes } from '../log/cursor.js'
import { PRIORITIES, type EventPriority } from '../events/event-rules.js'
import { encodeIdLine } from '../wire/event-stream.js'
import { FRAME_BYTES, type Frame } from '../delivery/frame.js'
import { OutboxLane } from './outbox-lane.js'

/**
 * The bounded queue of one connection that cannot be written to at present, and its position in the log. Higher priorities are sent
 * first. If the queue is full, ephemeral frames are dropped. Logged frames are removed and read from the log later, lowest priority first.
 * A priority whose frames were removed lags, and all lower priorities lag with it. Their frames are not queued at delivery, and are
 * sent only after more urgent events are read from the log.
 */
export class Outbox {
  readonly #limit: number
  readonly #budget: MemoryBudget
  readonly #lanes: readonly OutboxLane[] = Array.from({ length: PRIORITIES }, () => new OutboxLane())
  /** Waiting frames by key. A newer frame with the same key replaces the older one. */
  readonly #keyed = new Map<string, Frame>()
  /** Newest sequence number per key, queued while a page is read. Frames of the page with a lower one are outdated. */
  #overtaking: Map<string, number> | null = null
  /** The highest priority that lags; -1 if none lags. */
  #level = -1
  /** The pending gap event. No cursor is sent before it: a client with a later cursor would miss the gap. */
  #gap: Frame | null = null
  #bytes = 0
  #dropped = 0

  /**
   * @param limit maximum size in bytes; a single larger frame is accepted if nothing else waits
   * @param budget memory budget of all outboxes; frames that exceed it are not queued at delivery
   */
  constructor (limit: number, budget: MemoryBudget) {
    this.#limit = limit
    this.#budget = budget
  }

  /** Removes all frames, and returns their bytes to the budget. */
  discard (): void {
    for (const lane of this.#lanes) {
      for (const frame of lane.logged) this.#remove(frame)
      for (const frame of lane.ephemeral) this.#remove(frame)
    }
  }

  /** Memory of the waiting frames in bytes. */
  get bytes (): number {
    return this.#bytes
  }

  /** Number of ephemeral frames dropped so far. */
  get dropped (): number {
    return this.#dropped
  }

  /** Whether no frames wait, and nothing must be read from the log. */
  get idle (): boolean {
    return this.#level < 0 && this.#gap === null && this.#lanes.every(lane => lane.empty)
  }

  /**
   * Returns `lagging` for the next page, after an update of the lanes that have nothing left to read.
   * @param newest newest sequence number of each priority. A lane that is read up to it moves to `position`. Without this, its position
   * would leave the history while it waits for higher priorities, and cause a gap although the client missed no event.
   */
  ask (newest: readonly number[], position: number): { priority: EventPriority, after: number } | null {
    for (const [priority, lane] of this.#lanes.entries()) if (priority <= this.#level && lane.read >= newest[priority]!) lane.read = Math.max(lane.read, position)
    this.#goLive(position)
    this.#overtaking = this.#level < 0 ? null : new Map()
    return this.lagging
  }

  /** The most urgent lane that must be read from the log, and the position after which to read; null if no lane lags. */
  get lagging (): { priority: EventPriority, after: number } | null {
    return this.#level < 0 ? null : { priority: this.#level as EventPriority, after: this.#lanes[this.#level]!.read }
  }

  /** Returns whether the next read is still this lane at this position. */
  isReading (priority: EventPriority, after: number): boolean {
    return this.#level === priority && this.#lanes[priority]!.read === after
  }

  /** Returns the lanes from which the client would resume now, with the log at `position`; null while a gap event is pending. */
  place (position: number): Lanes | null {
    return this.#gap === null ? this.#seen(position) : null
  }

  /** Starts at a cursor. The most urgent lane behind `position` and all lower lanes are read from the log. */
  startAt (lanes: Lanes, position: number): void {
    this.#level = lanes.findLastIndex(seq => seq < position)
    for (const [priority, lane] of this.#lanes.entries()) lane.read = lanes[priority]!
  }

  /**
   * Queues a frame at its delivery. Returns false if it was dropped, which happens only to ephemeral frames.
   * @param position position of the log before the frame
   */
  push (frame: Frame, position: number): boolean {
    if (this.#lags(frame)) return true
    this.#conflate(frame)
    this.#makeRoom(frame, position)
    if (this.#lags(frame)) return true
    if (this.#full(frame)) {
      this.#dropped++
      return false
    }
    this.#append(frame, position)
    return true
  }

  /** Queues a frame that was read from the log for the lagging lane. Returns false if the queue is full; it must be read again later. */
  refill (frame: Frame): boolean {
    if (frame.key === null || this.#newestOf(frame.key) < frame.seq) {
      if (this.#crowded(frame) && this.#hasReady()) return false
      // No frame can be sent to free memory, so ephemeral frames are dropped. Without this, the read would never continue.
      this.#shed(frame.priority, () => this.#crowded(frame))
      this.#conflate(frame)
      this.#append(frame, frame.seq)
    }
    this.#lanes[frame.priority]!.read = frame.seq
    return true
  }

  /** Sets the position up to which a lane is read. Lanes that are read up to `position` no longer lag. */
  advance (priority: EventPriority, seq: number, position: number): void {
    const lane = this.#lanes[priority]!
    lane.read = Math.max(lane.read, seq)
    this.#goLive(position)
  }

  /** Ends the lag of lanes that are read up to `position`, from the most urgent one down. */
  #goLive (position: number): void {
    while (this.#level >= 0 && this.#lanes[this.#level]!.read >= position) this.#level--
    if (this.#level < 0) this.#overtaking = null
  }

  /** Ends the lag of all lanes without reading, and queues a gap event. Their logged frames are discarded. */
  skip (gap: Frame): void {
    for (const lane of this.#lanes.slice(0, this.#level + 1)) {
      for (const frame of lane.logged) this.#remove(frame)
      lane.unchain()
    }
    this.#level = -1
    this.#gap ??= gap
  }

  /** Discards the logged frames of all lanes, and queues a gap event. */
  restart (gap: Frame): void {
    this.#level = PRIORITIES - 1
    this.skip(gap)
  }

  /** Removes frames whose target no longer includes this connection; the cursor moves past them. */
  sift (isTarget: (target: Target) => boolean): void {
    for (const lane of this.#lanes) {
      for (const frames of [lane.logged, lane.ephemeral]) {
        for (const frame of frames) if (frame.target !== null && !isTarget(frame.target)) this.#remove(frame)
      }
    }
  }

  /** Removes and returns the next blocks, about `bytes` bytes. Each logged block has the cursor that is valid after it is received. */
  take (bytes: number, epoch: string, position: number): { text: string, frames: readonly Frame[] } {
    let text = ''
    const frames: Frame[] = []
    const place = (): string => encodeIdLine(formatLanes(epoch, this.#seen(position)))
    if (this.#gap !== null) {
      const gap = this.#gap
      this.#gap = null
      bytes -= gap.textBytes
      text += place() + gap.text
      frames.push(gap)
    }
    for (let priority = PRIORITIES - 1; priority >= Math.max(this.#level, 0); priority--) {
      const lane = this.#lanes[priority]!
      for (const frame of lane.ready(priority <= this.#level)) {
        if (bytes <= 0) return { text, frames }
        lane.send(frame)
        this.#forget(frame)
        bytes -= frame.textBytes
        text += (frame.seq > 0 ? place() : frame.head) + frame.text
        frames.push(frame)
      }
    }
    return { text, frames }
  }

  /** Returns whether a frame can be sent before more of the log is read. */
  #hasReady (): boolean {
    return this.#gap !== null || this.#lanes.some((lane, priority) => priority > this.#level ? !lane.empty : priority === this.#level && lane.hasLogged)
  }

  #seen (position: number): Lanes {
    return this.#lanes.map((lane, priority) => lane.seen(priority <= this.#level ? lane.read : position))
  }

  /** Returns whether the frame will be read from the log later. */
  #lags ({ seq, priority }: Frame): boolean {
    return seq > 0 && priority <= this.#level
  }

  #crowded (frame: Frame): boolean {
    return this.#bytes > 0 && this.#bytes + frame.bytes + FRAME_BYTES > this.#limit
  }

  #full (frame: Frame): boolean {
    return this.#crowded(frame) || !this.#budget.fits(frame, FRAME_BYTES)
  }

  #append (frame: Frame, position: number): void {
    this.#lanes[frame.priority]!.append(frame, position)
    this.#bytes += frame.bytes + FRAME_BYTES
    this.#budget.hold(frame)
    this.#budget.add(FRAME_BYTES)
    if (frame.key === null) return
    this.#keyed.set(frame.key, frame)
    if (frame.seq > 0) this.#overtaking?.set(frame.key, frame.seq)
  }

  #remove (frame: Frame): void {
    this.#lanes[frame.priority]!.remove(frame)
    this.#forget(frame)
  }

  #forget (frame: Frame): void {
    this.#bytes -= frame.bytes + FRAME_BYTES
    this.#budget.release(frame)
    this.#budget.add(-FRAME_BYTES)
    if (frame.key !== null) this.#keyed.delete(frame.key)
  }

  #newestOf (key: string): number {
    return Math.max(this.#overtaking?.get(key) ?? 0, this.#keyed.get(key)?.seq ?? 0)
  }

  #conflate (frame: Frame): void {
    const older = frame.key === null ? undefined : this.#keyed.get(frame.key)
    if (older !== undefined) this.#remove(older)
  }

  /** Frees memory for a frame. A logged frame displaces frames of its own priority and below, an ephemeral frame only those below. */
  #makeRoom (frame: Frame, position: number): void {
    const highest = frame.seq > 0 ? frame.priority : frame.priority - 1
    this.#shed(highest, () => this.#full(frame))
    for (let priority = 0; priority <= highest && this.#full(frame); priority++) this.#fallBehind(priority, position)
  }

  /** Drops ephemeral frames while `need` returns true, lowest priority and oldest first. */
  #shed (highest: number, need: () => boolean): void {
    for (let priority = 0; priority <= highest; priority++) {
      for (const frame of this.#lanes[priority]!.ephemeral) {
        if (!need()) return
        this.#remove(frame)
        this.#dropped++
      }
    }
  }

  /** Removes the logged frames of a priority and below. They will be read from the log later. */
  #fallBehind (highest: number, position: number): void {
    const seen = this.#seen(position)
    for (let priority = 0; priority <= highest; priority++) {
      const lane = this.#lanes[priority]!
      for (const frame of lane.logged) this.#remove(frame)
      lane.read = seen[priority]!
    }
    this.#level = Math.max(this.#level, highest)
  }
}
