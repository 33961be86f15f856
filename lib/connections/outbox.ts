import type { MemoryBudget } from '../util/memory-budget.js'
import type { Target } from '../events/target.js'
import { formatLanes, type Lanes } from '../log/cursor.js'
import { PRIORITIES, type EventPriority } from '../events/event-rules.js'
import { encodeIdLine } from '../wire/event-stream.js'
import { FRAME_BYTES, type Frame } from '../delivery/frame.js'
import { OutboxLane } from './outbox-lane.js'

/**
 * The bounded waiting room of one connection that cannot be written to right now, and its place in the log. Higher
 * priorities leave first. When it is full, ephemeral frames are dropped and logged frames leave for the log they came
 * from, lowest priority first. A priority that has left lags, and all below it: nothing of them is taken as it is delivered,
 * and nothing leaves, before what is more urgent has been read from the log. No sockets here.
 */
export class Outbox {
  readonly #limit: number
  readonly #budget: MemoryBudget
  readonly #lanes: readonly OutboxLane[] = Array.from({ length: PRIORITIES }, () => new OutboxLane())
  /** Waiting frames that a newer one with the same key replaces. */
  readonly #keyed = new Map<string, Frame>()
  /** Logged frames with a key that were taken while a page is being read: what it has of the same key is older. */
  #overtaking: Map<string, number> | null = null
  /** The highest priority that lags; -1 when all are live. */
  #level = -1
  /** The pending gap event. No cursor is sent before it: a client with a later cursor would miss the gap. */
  #gap: Frame | null = null
  #bytes = 0
  #dropped = 0

  /**
   * @param limit bytes; a single larger frame is still taken when nothing else waits.
   * @param budget shared with the other outboxes; what it has no room for is not taken as it is delivered.
   */
  constructor (limit: number, budget: MemoryBudget) {
    this.#limit = limit
    this.#budget = budget
  }

  /** Gives back what it holds of the budget: its connection has ended. */
  discard (): void {
    for (const lane of this.#lanes) {
      for (const frame of lane.logged) this.#remove(frame)
      for (const frame of lane.ephemeral) this.#remove(frame)
    }
  }

  get bytes (): number {
    return this.#bytes
  }

  /** Ephemeral frames dropped so far. */
  get dropped (): number {
    return this.#dropped
  }

  /** Nothing waits and nothing is to be read from the log. */
  get idle (): boolean {
    return this.#level < 0 && this.#gap === null && this.#lanes.every(lane => lane.empty)
  }

  /**
   * As `lagging`, to read a page from there.
   * @param newest of each priority the newest place in the log: a lane that has been read up to it is level with the log,
   * however long it waits for those above. What it has not read would fall out of the log otherwise, and there is nothing.
   */
  ask (newest: readonly number[], position: number): { priority: EventPriority, after: number } | null {
    for (const [priority, lane] of this.#lanes.entries()) if (priority <= this.#level && lane.read >= newest[priority]!) lane.read = Math.max(lane.read, position)
    this.#goLive(position)
    this.#overtaking = this.#level < 0 ? null : new Map()
    return this.lagging
  }

  /** The most urgent lane to be read from the log, and from where; null when all are live. */
  get lagging (): { priority: EventPriority, after: number } | null {
    return this.#level < 0 ? null : { priority: this.#level as EventPriority, after: this.#lanes[this.#level]!.read }
  }

  isReading (priority: EventPriority, after: number): boolean {
    return this.#level === priority && this.#lanes[priority]!.read === after
  }

  /** What a client that leaves now has seen, when the log stands at `position`; null while it has to hear of a gap first. */
  place (position: number): Lanes | null {
    return this.#gap === null ? this.#seen(position) : null
  }

  /** Begins at a cursor: from the most urgent lane that is behind `position`, the log is read. */
  startAt (lanes: Lanes, position: number): void {
    this.#level = lanes.findLastIndex(seq => seq < position)
    for (const [priority, lane] of this.#lanes.entries()) lane.read = lanes[priority]!
  }

  /**
   * Takes a frame as it is delivered. False when it was dropped: it was ephemeral and there was no room.
   * @param position where the log stood before it.
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

  /** Takes a frame read from the log for the lane that lags. False when there is no room: read it again later. */
  refill (frame: Frame): boolean {
    if (frame.key === null || this.#newestOf(frame.key) < frame.seq) {
      if (this.#crowded(frame) && this.#hasReady()) return false
      // Nothing else will make room: what stays behind this lane gives way.
      this.#shed(frame.priority, () => this.#crowded(frame))
      this.#conflate(frame)
      this.#append(frame, frame.seq)
    }
    this.#lanes[frame.priority]!.read = frame.seq
    return true
  }

  /** The lane has been read up to `seq`; those that have been read up to `position` are live again. */
  advance (priority: EventPriority, seq: number, position: number): void {
    const lane = this.#lanes[priority]!
    lane.read = Math.max(lane.read, seq)
    this.#goLive(position)
  }

  /** Lanes that have been read up to `position` do not lag, nor do those above. */
  #goLive (position: number): void {
    while (this.#level >= 0 && this.#lanes[this.#level]!.read >= position) this.#level--
    if (this.#level < 0) this.#overtaking = null
  }

  /** What the lagging lanes were to read is gone: they go on live, behind the frame that says so. */
  skip (gap: Frame): void {
    for (const lane of this.#lanes.slice(0, this.#level + 1)) {
      for (const frame of lane.logged) this.#remove(frame)
      lane.unchain()
    }
    this.#level = -1
    this.#gap ??= gap
  }

  /** All that was logged is void, what waits of it as well. */
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

  /** The text of the next blocks, about `bytes` of them, each logged one with the cursor that holds once it is read. */
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

  /** Whether something may leave without more of the log being read. */
  #hasReady (): boolean {
    return this.#gap !== null || this.#lanes.some((lane, priority) => priority > this.#level ? !lane.empty : priority === this.#level && lane.hasLogged)
  }

  #seen (position: number): Lanes {
    return this.#lanes.map((lane, priority) => lane.seen(priority <= this.#level ? lane.read : position))
  }

  /** Whether it comes from the log. */
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

  /** A logged frame may displace what is of its own priority and below, an ephemeral one only what is below. */
  #makeRoom (frame: Frame, position: number): void {
    const highest = frame.seq > 0 ? frame.priority : frame.priority - 1
    this.#shed(highest, () => this.#full(frame))
    for (let priority = 0; priority <= highest && this.#full(frame); priority++) this.#fallBehind(priority, position)
  }

  /** Drops ephemeral frames while need be, the lowest and oldest first. */
  #shed (highest: number, need: () => boolean): void {
    for (let priority = 0; priority <= highest; priority++) {
      for (const frame of this.#lanes[priority]!.ephemeral) {
        if (!need()) return
        this.#remove(frame)
        this.#dropped++
      }
    }
  }

  /** The logged frames of a priority and below leave for the log. */
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
