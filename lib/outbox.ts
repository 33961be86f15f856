import type { Target } from './broker.js'
import { formatCursor, type Lanes } from './cursor.js'
import { encodeId, PRIORITIES, type EventPriority } from './event.js'
import type { Frame } from './frame.js'

/** One priority's part of an outbox: a queue, and how far this lane of the log has been read and sent. */
class Lane {
  readonly #frames = new Set<Frame>()
  #logged = 0
  /** Sequence number of the last logged frame that left by the socket; meaningful while logged frames wait. */
  #sent = 0
  /** Whether logged frames of this lane come from the log (true) or as they are delivered (false). */
  lagging = false
  /** While lagging: the log has been read up to here. */
  read = 0

  get empty (): boolean {
    return this.#frames.size === 0
  }

  get hasLogged (): boolean {
    return this.#logged > 0
  }

  get hasEphemeral (): boolean {
    return this.#frames.size > this.#logged
  }

  get gap (): Frame | null {
    let gap: Frame | null = null
    for (const frame of this.#frames) if (frame.gap) gap = frame
    return gap
  }

  [Symbol.iterator] (): Iterator<Frame> {
    return this.#frames.values()
  }

  append (frame: Frame): void {
    if (frame.seq > 0 && this.#logged++ === 0) this.#sent = frame.gap ? this.read : frame.seq - 1
    this.#frames.add(frame)
  }

  remove (frame: Frame): void {
    this.#frames.delete(frame)
    if (frame.seq > 0) this.#logged--
  }

  send (frame: Frame): void {
    this.remove(frame)
    if (frame.seq > 0) this.#sent = frame.seq
  }

  /** Up to where a client that leaves now has seen this lane, or nothing in it was for it. */
  cursor (position: number): number {
    if (this.#logged > 0) return this.#sent
    return this.lagging ? this.read : position
  }
}

/** What all outboxes of a node may hold together. Bytes that several share are counted for each. */
export class Budget {
  readonly limit: number
  used = 0

  constructor (limit: number) {
    this.limit = limit
  }
}

/**
 * The bounded waiting room of one connection that cannot be written to right now, and its place in the log.
 * Higher priorities leave first. When it is full, ephemeral frames are dropped and logged frames leave for the log they
 * came from, lowest priority first: that lane then lags, and is read again from the log. No sockets here.
 */
export class Outbox {
  readonly #limit: number
  readonly #budget: Budget
  readonly #lanes: readonly Lane[] = Array.from({ length: PRIORITIES }, () => new Lane())
  /** Waiting frames that a newer one with the same key replaces. */
  readonly #keyed = new Map<string, Frame>()
  #bytes = 0
  #dropped = 0
  /** A frame from the log did not fit: reading on before something has left would only read it again. */
  #refused = false

  /**
   * @param limit bytes of frames; a single larger frame is still taken when nothing else waits.
   * @param budget shared with the other outboxes; beyond it this one takes a frame only when it is empty.
   */
  constructor (limit: number, budget = new Budget(Infinity)) {
    this.#limit = limit
    this.#budget = budget
  }

  /** Gives back what it holds of the budget: its connection has ended. */
  discard (): void {
    this.#budget.used -= this.#bytes
    this.#bytes = 0
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
    return this.#lanes.every(lane => lane.empty && !lane.lagging)
  }

  /** Whether a gap waits to be told. */
  get hasGap (): boolean {
    return this.#lanes.some(lane => lane.gap !== null)
  }

  /** Drained enough to be refilled from the log. */
  get roomy (): boolean {
    return this.#bytes === 0 || (!this.#refused && this.#bytes <= this.#limit / 2)
  }

  /** The most urgent lane to be read from the log, and from where; null when all are live. */
  get lagging (): { priority: EventPriority, after: number } | null {
    const priority = this.#lanes.findLastIndex(lane => lane.lagging)
    return priority < 0 ? null : { priority: priority as EventPriority, after: this.#lanes[priority]!.read }
  }

  /** What a client that leaves now has seen, when the log stands at `position`. */
  cursor (position: number): Lanes {
    return this.#lanes.map(lane => lane.cursor(position))
  }

  /** Begins at a cursor: lanes behind `position` are read from the log. */
  startAt (lanes: Lanes, position: number): void {
    for (const [priority, lane] of this.#lanes.entries()) {
      lane.read = lanes[priority]!
      lane.lagging = lane.read < position
    }
  }

  /** Takes a frame as it is delivered. False when it was dropped: it was ephemeral and there was no room. */
  push (frame: Frame): boolean {
    const lane = this.#lanes[frame.priority]!
    if (frame.seq > 0 && lane.lagging) return true
    this.#conflate(frame)
    if (this.#full(frame)) this.#makeRoom(frame)
    if (frame.seq > 0 && lane.lagging) return true
    if (!this.#full(frame)) {
      this.#append(frame)
    } else if (frame.seq > 0) {
      this.#evict(lane, frame.seq - 1)
    } else {
      this.#dropped++
      return false
    }
    return true
  }

  /** Takes a frame read from the log for a lagging lane. False when there is no room: read it again later. */
  refill (frame: Frame): boolean {
    const same = frame.key === null ? undefined : this.#keyed.get(frame.key)
    // A newer one, of a higher priority, may be waiting already: then it is this one that is replaced.
    if (same === undefined || same.seq < frame.seq) {
      if (this.#full(frame)) {
        this.#refused = true
        return false
      }
      this.#conflate(frame)
      this.#append(frame)
    }
    this.#lanes[frame.priority]!.read = frame.seq
    return true
  }

  /** The lane has been read up to `seq`; at `position` it is live again. */
  advance (priority: EventPriority, seq: number, position: number): void {
    const lane = this.#lanes[priority]!
    lane.read = Math.max(lane.read, seq)
    if (lane.read >= position) lane.lagging = false
  }

  /** What the lagging lanes were to read is gone: they go on live, behind the frame that says so. */
  skip (gap: Frame): void {
    for (const lane of this.#lanes) lane.lagging = false
    this.#append(gap)
  }

  /** Lets go of the frames whose targets do not name this connection any more. For its place they count as not meant for it. */
  sift (isTarget: (target: Target) => boolean): void {
    for (const lane of this.#lanes) {
      for (const frame of lane) if (frame.target !== null && !isTarget(frame.target)) this.#remove(frame)
    }
    this.#refused = false
  }

  /** The text of the next blocks, about `bytes` of them, each logged one with the cursor that holds once it is read. */
  take (bytes: number, epoch: string, position: number): { text: string, count: number } {
    let text = ''
    let count = 0
    for (let priority = PRIORITIES - 1; priority >= 0; priority--) {
      const lane = this.#lanes[priority]!
      for (const frame of lane) {
        if (bytes <= 0) return { text, count }
        this.#refused = false
        lane.send(frame)
        this.#forget(frame)
        bytes -= frame.bytes
        text += (frame.seq > 0 ? encodeId(formatCursor(epoch, this.cursor(position))) : frame.head) + frame.text
        count++
      }
    }
    return { text, count }
  }

  #full (frame: Frame): boolean {
    return this.#bytes > 0 && (this.#bytes + frame.bytes > this.#limit || this.#budget.used + frame.bytes > this.#budget.limit)
  }

  #append (frame: Frame): void {
    this.#lanes[frame.priority]!.append(frame)
    this.#bytes += frame.bytes
    this.#budget.used += frame.bytes
    if (frame.key !== null) this.#keyed.set(frame.key, frame)
  }

  #remove (frame: Frame): void {
    this.#lanes[frame.priority]!.remove(frame)
    this.#forget(frame)
  }

  #forget (frame: Frame): void {
    this.#bytes -= frame.bytes
    this.#budget.used -= frame.bytes
    if (frame.key !== null) this.#keyed.delete(frame.key)
  }

  #conflate (frame: Frame): void {
    const older = frame.key === null ? undefined : this.#keyed.get(frame.key)
    if (older !== undefined) this.#remove(older)
  }

  /** A logged frame may displace what is of its own priority and below, an ephemeral one only what is below. */
  #makeRoom (frame: Frame): void {
    const displaced = this.#lanes.slice(0, frame.seq > 0 ? frame.priority + 1 : frame.priority)
    for (const lane of displaced) {
      if (this.#full(frame) && lane.hasEphemeral) this.#shed(lane, frame)
    }
    for (const lane of displaced) {
      if (this.#full(frame) && lane.hasLogged) this.#evict(lane, lane.cursor(0))
    }
  }

  /** Drops the oldest ephemeral frames of a lane, as many as `arriving` needs. */
  #shed (lane: Lane, arriving: Frame): void {
    for (const frame of lane) {
      if (!this.#full(arriving)) return
      if (frame.seq > 0) continue
      this.#remove(frame)
      this.#dropped++
    }
  }

  /** Logged frames leave for the log. A gap is not in the log: it stays, and stands for all that came before it. */
  #evict (lane: Lane, read: number): void {
    const { gap } = lane
    for (const frame of lane) if (frame.seq > 0 && frame !== gap) this.#remove(frame)
    lane.read = gap === null ? read : gap.seq
    lane.lagging = true
  }
}
