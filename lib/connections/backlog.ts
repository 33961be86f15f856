import type { Broker, GapReason } from '../log/broker.js'
import type { Message } from '../events/message.js'
import type { Target } from '../events/target.js'
import { BrokerUnavailable } from '../errors.js'
import type { Interest } from '../log/log-index.js'
import { formatCursor, parseCursor } from '../log/cursor.js'
import { FRAME_BYTES, type Frame } from '../delivery/frame.js'
import type { Turns } from '../delivery/replay-scheduler.js'
import { CatchUp } from './catch-up.js'
import { gapFrame } from './control-frames.js'
import { GapListeners, type GapListener } from './gap-listeners.js'
import { INCOMPLETE } from './snapshot-mark.js'
import { Lead } from './lead.js'
import { Resumption } from './resumption.js'
import type { Snapshot } from './snapshot.js'
import { Unsent } from './unsent.js'

/**
 * The unsent frames of one connection, and its cursor. Usually they are the batch of this turn. A slow or reconnecting client also has
 * an outbox, which is refilled from the log. So has a client that waits for a snapshot.
 */
export class Backlog extends Unsent {
  #reading = false
  /** The resumption from a cursor that this node has not reached; null otherwise. Logged events are not queued until it begins. */
  #awaited: Resumption | null = null
  #snapshot: Snapshot | null = null
  #gapListeners: GapListeners | null = null
  #resumed: boolean | null = false

  /** Whether events must be read from the log, a snapshot is pending, or the cursor of the client is ahead of this node. */
  get lagging (): boolean {
    return this.catchUp !== null && (this.#awaited !== null || this.catchUp.outbox.lagging !== null || this.#isPending)
  }

  get #isPending (): boolean {
    return this.#snapshot !== null && this.#snapshot.isPending
  }

  /** The snapshots of the connection; null without the option `snapshot`. */
  get snapshot (): Snapshot | null {
    return this.#snapshot
  }

  /** Whether a snapshot waits for the client, in whole or in part. */
  get leads (): boolean {
    return this.catchUp?.outbox.leads === true
  }

  override get bytes (): number {
    return super.bytes + (this.#snapshot?.bytes ?? 0)
  }

  override get dropped (): number {
    return super.dropped + (this.#snapshot?.dropped ?? 0)
  }

  /** Whether the client has missed no event since its cursor; null while this is not known. */
  get resumed (): boolean | null {
    return this.#resumed
  }

  /**
   * The cursor from which the client would resume now, with a mark if its state is incomplete. Null while a gap event or a snapshot is
   * pending: a client with a later cursor would miss it.
   */
  get cursor (): string | null {
    const mark = this.#mark
    const cursor = mark === null ? null : this.#unmarked
    return cursor === null ? null : cursor + (this.leads ? INCOMPLETE : mark)
  }

  get #unmarked (): string | null {
    const { epoch, position } = this.context.eventLog
    if (this.#awaited !== null) return this.#awaited.cursor
    return this.catchUp === null ? formatCursor(epoch, position) : this.catchUp.cursor
  }

  get #mark (): string | null {
    return this.#snapshot === null ? '' : this.#snapshot.mark
  }

  /** The id of the client after its snapshot could not be loaded; null if its id remains. */
  get failedId (): string | null {
    return this.#snapshot?.failedId(this.#unmarked) ?? null
  }

  protected override queue (frame: Frame): boolean {
    const awaited = this.#awaited
    if (awaited !== null && frame.fromLog) {
      // This node is behind the cursor: the client has received these logged events. Ephemeral events are dropped, because they are
      // older than the connection.
      if (awaited.gap !== null) return frame.seq > 0
      this.#begin(awaited, null)
    }
    const { outbox, ceiling } = this.fallBehind()
    const isHeld = this.#isPending && (this.#snapshot!.replaces || ceiling < Infinity)
    if (!isHeld) return outbox.push(frame, this.context.eventLog.position)
    // Logged events after the position of the snapshot are read from the log.
    if (frame.seq > 0) return true
    const snapshot = this.#snapshot!
    if (outbox.boundedBytes === 0 || outbox.boundedBytes + snapshot.bytes + frame.bytes + FRAME_BYTES <= this.context.outboxBytes) return snapshot.queue(frame)
    this.lost++
    this.onDrop('outbox')
    return false
  }

  /** Removes and returns the next blocks of the outbox, about `bytes` bytes; null if there are none. */
  take (bytes: number): { text: string, frames: readonly Frame[] } | null {
    if (this.catchUp === null) return null
    const taken = this.catchUp.take(bytes, this.#mark)
    return taken.text === '' ? null : taken
  }

  /** Handles that the blocks of `take` are written. */
  written (): void {
    if (!this.leads) this.#snapshot?.sent()
  }

  override sift (isTarget: (target: Target) => boolean): void {
    super.sift(isTarget)
    this.#snapshot?.sift(isTarget)
  }

  /** Handles that everything is written. Drops the outbox if it is empty and the connection has caught up: further frames are written without it. */
  settle (): void {
    this.written()
    this.#snapshot?.begin()
    if (this.#awaited !== null || this.catchUp?.outbox.idle !== true || this.#isPending) return
    this.replace(null)
  }

  override clear (): void {
    this.#awaited = null
    super.clear()
    this.#snapshot?.cancel()
  }

  // --- The beginning ---

  /** Begins at the client's cursor, or with a gap event if that is not possible. A client without a cursor begins with a snapshot. */
  begin (lastEventId: string | null, snapshot: Snapshot | null, interest: Interest): void {
    this.#snapshot = snapshot
    if (lastEventId !== null) this.#resume(lastEventId, interest)
    else if (snapshot !== null) {
      this.fallBehind()
      snapshot.need('connect', 0)
    }
  }

  #resume (lastEventId: string, interest: Interest): void {
    const cursor = parseCursor(lastEventId)
    if (cursor === null) return this.#lose('malformed', lastEventId)
    this.#resumed = null
    const resumption = new Resumption(this.context, cursor, lastEventId)
    const { gap } = resumption
    if (gap === null || !this.context.eventLog.shared) return this.#begin(resumption, gap, interest)
    // Another node can be ahead of this one, so the log is read before a gap is reported.
    this.#awaited = resumption
    this.fallBehind()
  }

  #begin (resumption: Resumption, known: GapReason | null, interest: Interest | null = null): void {
    this.#awaited = null
    const { eventLog, options: { maxReplayBytes } } = this.context
    // A client that this node has been behind begins with the event that is being delivered.
    const reached = interest === null ? eventLog.position : eventLog.reached
    const { lanes, lastEventId } = resumption
    const gap = known ?? resumption.limit
    if (gap !== null) return this.#lose(gap, lastEventId, { floor: gap === 'limit' ? Math.max(...lanes) : 0 })
    const after = Math.min(...lanes)
    if (after < reached && (interest === null || !eventLog.hasNothing(after, interest))) {
      const catchUp = this.fallBehind()
      if (maxReplayBytes > 0) catchUp.allowance = maxReplayBytes
      catchUp.outbox.startAt(lanes, reached)
    } else this.#decide(true)
    if (this.#snapshot?.owes === true) this.#needAdded(this.#snapshot)
  }

  /** Sets whether the client has missed no event. Reported for an open stream; `StateFirst` reports what is known when it opens. */
  #decide (resumed: boolean): void {
    if (this.#resumed === null && this.owner.isConnected) this.context.telemetry.onResume(this.clientId, resumed ? 'resumed' : 'gap')
    this.#resumed = resumed
  }

  /** Begins the resumption if the log has reported a gap or this node has reached the cursor. Rejects otherwise, to try again later. */
  async #reach (broker: Broker, awaited: Resumption): Promise<void> {
    const gap = await awaited.ask(broker)
    if (this.#awaited !== awaited) return
    if (gap === null && awaited.gap !== null) throw new BrokerUnavailable('is ahead of this node')
    this.#begin(awaited, gap)
  }

  // --- Gaps ---

  /** Handles lost continuity of the log: waiting logged frames are discarded, and a gap event is queued. */
  invalidate (reason: GapReason): void {
    // No logged frame waits in this state. Whether the client missed events is known when the resumption begins.
    if (this.#awaited !== null) return
    this.spill()
    this.#lose(reason, '', { floor: this.context.eventLog.position, isAll: true })
  }

  /**
   * Queues a gap event and ends the lag. With snapshots, the state is loaded, which replaces all logged frames.
   * @param floor earliest position of a shared load that the connection can join
   * @param isAll whether logged frames are discarded that do not lag
   */
  #lose (reason: GapReason, lastEventId: string, { floor = 0, isAll = false } = {}): void {
    const snapshot = this.#snapshot
    const catchUp = this.fallBehind()
    catchUp.endReplay('gap')
    // The client waits for its whole state already.
    if (snapshot?.replaces === true) return snapshot.again(floor)
    this.#decide(false)
    const frame = gapFrame(reason, lastEventId, snapshot !== null)
    snapshot?.sent()
    if (isAll || snapshot !== null) catchUp.outbox.restart(frame)
    else catchUp.outbox.skip(frame)
    snapshot?.need('gap', floor)
    this.context.telemetry.onGap(this.clientId, reason)
    this.#listeners.add({ reason, lastEventId, snapshot: snapshot !== null })
  }

  get #listeners (): GapListeners {
    return (this.#gapListeners ??= new GapListeners(this.context.log))
  }

  /** Calls a function for each gap. */
  onGap (listener: GapListener): void {
    this.#listeners.listen(listener)
  }

  // --- Snapshots ---

  /** Handles a subscription that was added: a client with snapshots needs its state. */
  added (subscription: string): void {
    const snapshot = this.#snapshot
    if (snapshot === null) return
    snapshot.owe(subscription)
    if (snapshot.isPending || this.#awaited !== null) return
    this.#needAdded(snapshot)
    const cursor = this.#unmarked
    // Without it, a client that disconnects now would resume without the state. A waiting snapshot has a cursor with the mark.
    if (snapshot.isOpen && cursor !== null && !this.leads) this.fallBehind().outbox.leadWith(new Lead([], cursor, this.context.budget))
  }

  #needAdded (snapshot: Snapshot): void {
    this.spill()
    this.fallBehind()
    snapshot.need('added')
  }

  /** Sends events up to this position of the log before the state of added subscriptions, and later ones after it. */
  hold (position: number): void {
    this.fallBehind().hold(position)
  }

  /** Sends the snapshot if the log still has the events after it. */
  async #place (broker: Broker, snapshot: Snapshot): Promise<void> {
    const { load, gap } = await snapshot.check(broker)
    if (!snapshot.isAt(load)) return
    // A load that began later can still be good.
    if (gap !== null) return this.#lose(gap, this.#unmarked ?? '', { floor: load.at!.position + 1 })
    this.replace(new CatchUp(this.context, this, snapshot.place()))
    if (snapshot.owes) this.#needAdded(snapshot)
  }

  // --- Reading ---

  /** Whether the log must be read, and no read is pending. */
  get wantsPage (): boolean {
    if (this.#reading || this.catchUp === null) return false
    return this.#awaited !== null || this.catchUp.outbox.lagging !== null || this.#snapshot?.isLoaded === true
  }

  /** Reads the log: a page of missed events, or whether it has what follows a cursor or a snapshot. Rejects if it cannot be read. */
  async readPage (broker: Broker, turns: Turns, interest: Interest, wants: (message: Message) => boolean): Promise<void> {
    this.#reading = true
    try {
      if (this.#awaited !== null) return await this.#reach(broker, this.#awaited)
      const catchUp = this.catchUp
      if (catchUp === null) return
      if (this.#snapshot?.isLoaded === true && catchUp.outbox.idle) return await this.#place(broker, this.#snapshot)
      const gap = await catchUp.read(broker, turns, interest, wants)
      if (gap !== null) this.#lose(gap, this.#unmarked ?? '', { floor: Math.max(...catchUp.place ?? [0]) })
      else if (catchUp.outbox.lagging === null && this.#resumed === null) this.#decide(true)
    } finally {
      this.#reading = false
    }
  }
}
