import type { MemoryBudget } from '../util/memory-budget.js'
import type { Target } from '../events/target.js'
import { formatLanes, type Lanes } from '../log/cursor.js'
import { PRIORITIES, type EventPriority } from '../events/event-rules.js'
import { encodeIdLine } from '../wire/event-stream.js'
import { FRAME_BYTES, type Frame } from '../delivery/frame.js'
import type { Lead } from './lead.js'
import { OutboxKeys } from './outbox-keys.js'
import { OutboxLane } from './outbox-lane.js'
import type { OutboxOwner } from './outbox-owner.js'

/**
 * The bounded queue of one connection that cannot be written to at present, and its position in the log. Higher priorities are sent
 * first. If the queue is full, ephemeral frames are dropped. Logged frames are removed and read from the log later, lowest priority first.
 * A priority whose frames were removed lags, and all lower priorities lag with it. Their frames are not queued at delivery, and are
 * sent only after more urgent events are read from the log.
 */
export class Outbox {
  readonly #limit: number
  readonly #budget: MemoryBudget
  readonly #owner: OutboxOwner | null
  readonly #lanes: readonly OutboxLane[] = Array.from({ length: PRIORITIES }, () => new OutboxLane())
  readonly #keys = new OutboxKeys()
  /** The highest priority that lags; -1 if none lags. */
  #level = -1
  /** The pending gap event. No cursor is sent before it: a client with a later cursor would miss the gap. */
  #gap: Frame | null = null
  #lead: Lead | null = null
  #bytes = 0
  #dropped = 0

  /**
   * @param limit maximum size in bytes; a single larger frame is accepted if nothing else waits
   * @param budget memory budget of all outboxes; frames that exceed it are not queued at delivery
   */
  constructor (limit: number, budget: MemoryBudget, owner: OutboxOwner | null = null) {
    this.#limit = limit
    this.#budget = budget
    this.#owner = owner
  }

  /** Removes all frames, and returns their bytes to the budget. */
  discard (): void {
    for (const lane of this.#lanes) for (const frame of lane.all()) this.#remove(frame)
    this.leadWith(null)
  }

  /** Memory of the waiting frames in bytes. */
  get bytes (): number {
    return this.#bytes + (this.#lead?.bytes ?? 0)
  }

  /** The same without a snapshot, which `limit` does not bound. */
  get boundedBytes (): number {
    return this.#bytes
  }

  /** Number of ephemeral frames dropped so far. */
  get dropped (): number {
    return this.#dropped
  }

  /** Whether no frames wait, and nothing must be read from the log. */
  get idle (): boolean {
    return this.#level < 0 && this.#gap === null && this.#lead === null && this.#lanes.every(lane => lane.empty)
  }

  /**
   * Returns `lagging` for the next page, after an update of the lanes that have nothing left to read.
   * @param newest newest sequence number of each priority. A lane that is read up to it moves to `position`. Without this, its position
   * would leave the history while it waits for higher priorities, and cause a gap although the client missed no event.
   */
  ask (newest: readonly number[], position: number): { priority: EventPriority, after: number } | null {
    for (const [priority, lane] of this.#lanes.entries()) if (priority <= this.#level && lane.read >= newest[priority]!) lane.read = position
    this.#goLive(position)
    this.#keys.read(this.#level >= 0)
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

  /** Reads all lanes from the log: those that do not lag, after `position` or the last frame that waits. */
  lagFrom (position: number): void {
    for (const lane of this.#lanes.slice(this.#level + 1)) lane.read = lane.newest(position)
    this.#level = PRIORITIES - 1
  }

  /** Starts at a cursor. The most urgent lane behind `position` and all lower lanes are read from the log. */
  startAt (lanes: Lanes, position: number): void {
    this.#level = lanes.findLastIndex(seq => seq < position)
    for (const [priority, lane] of this.#lanes.entries()) lane.read = lanes[priority]!
  }

  /** Whether a snapshot waits, in whole or in part. */
  get leads (): boolean {
    return this.#lead !== null && this.#lead.isState
  }

  /** Sends these blocks before all frames, and after a gap event. Earlier ones are discarded. */
  leadWith (lead: Lead | null): void {
    this.#lead?.discard()
    this.#lead = lead
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
    const isFull = this.#full(frame)
    if (isFull) this.#drop(frame)
    else this.#append(frame, position)
    return !isFull
  }

  /** Queues a frame that was read from the log for the lagging lane. Returns false if the queue is full; it must be read again later. */
  refill (frame: Frame): boolean {
    if (!this.#keys.outdates(frame)) {
      if (this.#crowded(frame) && this.#hasReady()) return false
      // No frame can be sent to free memory, so ephemeral frames are dropped. Without this, the read would never continue.
      this.#shed(frame, frame.priority, () => this.#crowded(frame))
      this.#conflate(frame)
      this.#append(frame, frame.seq)
    }
    this.#lanes[frame.priority]!.read = frame.seq
    return true
  }

  /** Sets the position up to which a lane is read. Lanes that are read up to `position` no longer lag. */
  advance (priority: EventPriority, seq: number, position: number): void {
    this.#lanes[priority]!.read = Math.max(this.#lanes[priority]!.read, seq)
    this.#goLive(position)
  }

  /** Ends the lag of lanes that are read up to `position`, from the most urgent one down. */
  #goLive (position: number): void {
    while (this.#level >= 0 && this.#lanes[this.#level]!.read >= position) this.#level--
    if (this.#level < 0) this.#keys.read(false)
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
    this.leadWith(null)
    this.#level = PRIORITIES - 1
    this.skip(gap)
  }

  /** Removes frames whose target no longer includes this connection; the cursor moves past them. */
  sift (isTarget: (target: Target) => boolean): void {
    for (const lane of this.#lanes) for (const frame of lane.all()) if (frame.target !== null && !isTarget(frame.target)) this.#remove(frame)
  }

  /**
   * Removes and returns the next blocks, about `bytes` bytes. Each logged block has the cursor that is valid after it is received.
   * @param mark the end of each cursor; null sends no cursors
   */
  take (bytes: number, epoch: string, position: number, mark: string | null = ''): { text: string, frames: readonly Frame[] } {
    let text = ''
    const frames: Frame[] = []
    const place = (): string => mark === null ? '' : encodeIdLine(formatLanes(epoch, this.#seen(position)) + mark)
    if (this.#gap !== null) {
      const gap = this.#gap
      this.#gap = null
      bytes -= gap.textBytes
      text += place() + gap.text
      frames.push(gap)
    }
    if (this.#lead !== null) {
      const taken = this.#lead.take(bytes, mark)
      text += taken.text
      frames.push(...taken.frames)
      // Events follow the whole snapshot: the cursors of the client would say that it has the rest.
      if (!this.#lead.sent) return { text, frames }
      this.#lead = null
      for (const { textBytes } of taken.frames) bytes -= textBytes
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
    this.#keys.add(frame)
  }

  #remove (frame: Frame): void {
    this.#lanes[frame.priority]!.remove(frame)
    this.#forget(frame)
  }

  #forget (frame: Frame): void {
    this.#bytes -= frame.bytes + FRAME_BYTES
    this.#budget.release(frame)
    this.#budget.add(-FRAME_BYTES)
    this.#keys.remove(frame)
  }

  #conflate (frame: Frame): void {
    const older = this.#keys.replacedBy(frame)
    if (older !== undefined) this.#remove(older)
  }

  /** Frees memory for a frame. A logged frame displaces frames of its own priority and below, an ephemeral frame only those below. */
  #makeRoom (frame: Frame, position: number): void {
    const highest = frame.seq > 0 ? frame.priority : frame.priority - 1
    this.#shed(frame, highest, () => this.#full(frame))
    for (let priority = 0; priority <= highest && this.#full(frame); priority++) if (this.#lanes[priority]!.hasLogged || priority === frame.priority) this.readLater(position, priority)
  }

  /** Drops ephemeral frames for another frame while `need` returns true, lowest priority and oldest first. */
  #shed (cause: Frame, highest: number, need: () => boolean): void {
    for (let priority = 0; priority <= highest; priority++) {
      for (const frame of this.#lanes[priority]!.ephemeral) {
        if (!need()) return
        this.#drop(cause)
        this.#remove(frame)
      }
    }
  }

  /** Counts a frame that is dropped for `cause`. */
  #drop (cause: Frame): void {
    this.#dropped++
    this.#owner?.onDrop(this.#crowded(cause) ? 'outbox' : 'memory')
  }

  /** Removes the logged frames of a priority and below, by default all. They will be read from the log later. */
  readLater (position: number, highest = this.#lanes.findLastIndex(lane => lane.hasLogged)): void {
    const seen = this.#seen(position)
    for (let priority = 0; priority <= highest; priority++) {
      const lane = this.#lanes[priority]!
      for (const frame of lane.logged) this.#remove(frame)
      lane.read = seen[priority]!
    }
    if (this.#level < 0 && highest >= 0) this.#owner?.onLag()
    this.#level = Math.max(this.#level, highest)
  }
}
