import type { Broker, GapReason } from '../log/broker.js'
import type { Interest } from '../log/log-index.js'
import type { Target } from '../events/target.js'
import type { Flushable } from '../delivery/flusher.js'
import type { Frame } from '../delivery/frame.js'
import type { Turns } from '../delivery/replay-scheduler.js'
import { inNoContext } from '../util/async-context.js'
import { Chunk } from '../wire/chunk.js'
import { encodeIdBlock } from '../wire/event-stream.js'
import type { HttpResponse } from '../wire/http.js'
import { Writer } from '../wire/writer.js'
import { Backlog } from './backlog.js'
import type { ConnectionContext } from './context.js'
import type { ConnectionStats } from './statistics.js'
import { Unfinished } from './unfinished.js'

/** The states of a stream, in order. */
export type ConnectionState = 'opening' | 'open' | 'closing' | 'closed'

/** @internal */
export const PUMP_BYTES = 16 * 1024
/** A position that equals no position of the log. */
export const NO_POSITION = -1

/** Sends frames to one client, as fast as it reads, and reads missed events from the log. */
export abstract class Sender {
  // Fields that each event uses come first, so that they share cache lines.
  /** @internal */ readonly managed: boolean
  /** @internal */ mark = 0
  /** See `WriterOwner`. @internal */ blocked = true
  /** @internal */ next: Flushable | null = null
  /** The reason why the stream has ended or is closing; null while it is open. @internal */ protected reason: string | null = null
  /** @internal */ protected state: ConnectionState = 'opening'
  /** @internal */ protected readonly context: ConnectionContext
  /** @internal */ protected readonly writer: Writer
  /** @internal */ protected readonly backlog: Backlog
  /** Log position of the last cursor that the client was sent. */
  #sentPosition = 0
  /** Number of events written. @internal */ protected sent = 0
  /** Time of the last write, by the clock of the wheel. @internal */ lastWriteAt = 0
  #unfinished: Unfinished | null = null
  #waiter: (() => void) | null = null
  /** Number of pending authorizations that delay this stream. */
  #holds = 0
  /** Whether the socket is full, while authorizations are pending. */
  #socketBlocked = false

  /** @internal */
  constructor (context: ConnectionContext, response: HttpResponse, managed: boolean) {
    this.context = context
    this.managed = managed
    this.writer = new Writer(response, this, context.budget)
    this.backlog = new Backlog(context, this)
  }

  /** Returns the counters of this connection. */
  stats (): ConnectionStats {
    const { dropped, bytes, lagging } = this.backlog
    return { sentEvents: this.sent, droppedEvents: dropped, queuedBytes: bytes + this.writer.queuedBytes, lagging }
  }

  /** Whether the stream is open: true after the response headers are sent, until the stream closes or ends. */
  get isConnected (): boolean {
    return this.state === 'open'
  }

  // --- Implemented by subclasses ---

  abstract readonly clientId: string
  /** The connection, as the log knows it. @internal */
  protected abstract readonly interest: Interest
  /** Returns whether the connection currently receives messages with this target. @internal */
  protected abstract isTarget (target: Target): boolean
  /** Handles that the stream starts to wait, for its socket or for an authorization. @internal */
  protected abstract onWait (): void
  /** Destroys the stream without `sse:close`. @internal */
  protected abstract cut (reason: string): void
  /** See `WriterOwner`. @internal */
  abstract onWriteError (error: unknown): void
  /** See `WriterOwner`. @internal */
  abstract finish (): void

  // --- Frames ---

  // A method, because V8 runs private getters slowly, and each event calls this.
  /** @internal */
  protected hasEnded (): boolean {
    return this.reason !== null
  }

  /** @internal */
  protected marked (): void {
    (this.managed ? this.context.flusher : this.context.sourceFlusher).mark(this)
  }

  /** Queues a frame for the end of this turn. Returns false if it was dropped. @internal */
  receive (frame: Frame): boolean {
    if (this.hasEnded()) return false
    if (!this.blocked && this.backlog.overflows(frame)) this.flush()
    const taken = this.backlog.receive(frame, this.blocked)
    if (!this.blocked) this.marked()
    return taken
  }

  /** Writes the frames of this turn. @internal */
  flush (): void {
    if (this.state !== 'open') return
    if (this.blocked) this.backlog.spill()
    const batch = this.backlog.takeBatch()
    if (batch !== null) {
      if (batch.frame!.seq > 0) this.#sentPosition = batch.frame!.seq
      this.write(batch.chunk)
      this.sent += batch.events
      if (this.writer.hasRest) this.#unfinished = new Unfinished(batch.frames, this.context.budget)
      // Usually nothing else is queued: a connection with an outbox has no batch.
      else if (this.#waiter === null) return
    }
    this.#pump()
  }

  /** Writes waiting frames until the socket is full. If it is not full, requests the next page of a lagging connection. */
  #pump (): void {
    if (this.state !== 'open') return
    while (!this.blocked) {
      if (this.writer.writeRest()) {
        this.#wrote()
        continue
      }
      this.#dropUnfinished()
      const taken = this.backlog.take(PUMP_BYTES)
      if (taken === null) break
      this.sent += taken.frames.length
      this.write(new Chunk(taken.text))
      if (this.writer.hasRest) this.#unfinished = new Unfinished(taken.frames, this.context.budget)
      else this.backlog.written()
    }
    // Reads a page only when the socket is empty: a lagging connection keeps its cursor and no frames.
    if (this.blocked) return
    if (this.backlog.wantsPage) this.context.replays.want(this)
    this.backlog.settle()
    if (!this.#isWaiting()) this.#wake()
  }

  /** @internal */
  protected write (chunk: Chunk): void {
    this.writer.write(chunk)
    this.#wrote()
  }

  #wrote (): void {
    this.lastWriteAt = this.context.wheel.now
    if (this.blocked) this.onWait()
  }

  /** Starts deliveries after the first block. `position` is the log position of its cursor, or `NO_POSITION`. @internal */
  protected goLive (position: number): void {
    this.#sentPosition = position
    this.#wrote()
    if (this.#holds > 0) this.#waitForRights()
    if (this.backlog.behind) this.marked()
  }

  #dropUnfinished (): void {
    this.#unfinished?.release()
    this.#unfinished = null
  }

  /** @internal */
  onDrain (): void {
    if (this.#holds > 0) return this.#waitForRights()
    this.#pump()
  }

  // --- The log ---

  /** Reads the next page of missed events. Rejects if the log cannot be read. @internal */
  async readPage (broker: Broker, turns: Turns): Promise<void> {
    try {
      await this.backlog.readPage(broker, turns, this.interest, message => this.isTarget(message.target))
    } finally {
      this.#pump()
    }
  }

  /** Handles lost continuity of the log: queued frames of the log are invalid. @internal */
  invalidate (reason: GapReason): void {
    if (!this.managed || this.hasEnded()) return
    this.backlog.invalidate(reason)
    // The same number in another epoch is another position.
    this.#sentPosition = NO_POSITION
    this.marked()
  }

  /** Returns the block with the cursor of the client; empty while no cursor can be sent. @internal */
  protected cursorBlock (): string {
    const cursor = this.managed ? this.backlog.cursor : null
    return cursor === null ? '' : encodeIdBlock(cursor)
  }

  /** Sends the cursor if the log has advanced without events for this client. Returns whether it was sent. @internal */
  protected keepCursor (): boolean {
    const { eventLog: { position }, cursors } = this.context
    if (!this.managed || this.#sentPosition === position || !this.backlog.empty) return false
    this.#sentPosition = position
    this.write(cursors.of(this.cursorBlock()))
    return true
  }

  // --- Rights ---

  /** Removes waiting frames whose target no longer includes this connection. A frame that is being written continues. @internal */
  sift (): void {
    if (this.state !== 'closed') inNoContext(() => this.backlog.sift(target => this.isTarget(target)))
  }

  /** Checks waiting frames again after rights of the user have changed. @internal */
  reconsider (): void {
    this.sift()
    if (this.#unfinished === null || this.#unfinished.isFor(target => this.isTarget(target))) return
    // Bytes handed to the socket cannot be withdrawn: the stream is destroyed, and the client reconnects with its new rights.
    this.reason = 'revoked'
    this.cut('revoked')
  }

  /** Stops writing until `endHold()`, as if the socket were full. After `stallTimeoutMs` the stream is closed. @internal */
  hold (): void {
    if (++this.#holds > 1) return
    // The stall time of a blocked client continues: repeated authorizations must not keep it connected.
    const isStalled = this.blocked
    this.#block()
    if (this.state === 'open' && !isStalled) this.onWait()
  }

  #waitForRights (): void {
    this.#block()
    this.onWait()
  }

  #block (): void {
    this.#socketBlocked = this.blocked
    this.blocked = true
  }

  /** @internal */
  endHold (): void {
    if (--this.#holds > 0) return
    this.blocked = this.#socketBlocked
    // At once: an event that is received in this turn must not be written into the middle of one that is written in pieces.
    if (!this.blocked) this.#pump()
  }

  /** Whether the stream waits for an authorization only, and not for its socket. @internal */
  protected get waitsForRights (): boolean {
    return this.#holds > 0 && !this.#socketBlocked
  }

  // --- Sources ---

  /** Resolves when all queued frames are written, or the connection has ended. @internal */
  drained (): Promise<void> {
    if (this.hasEnded() || !this.#isWaiting()) return Promise.resolve()
    return new Promise(resolve => { this.#waiter = resolve })
  }

  /** Returns whether a source must wait before it adds this frame, so that none of its items is dropped. Can write earlier frames. @internal */
  crowdedFor (frame: Frame): boolean {
    if (this.hasEnded()) return false
    // `receive` would do so as well, and drop the frame if the socket is then full and the queues of other clients leave no memory.
    if (!this.blocked && this.backlog.overflows(frame)) this.flush()
    const { behind, textBytes } = this.backlog
    return this.blocked || behind || (textBytes > 0 && textBytes + frame.textBytes > Math.min(PUMP_BYTES, this.context.outboxBytes))
  }

  #isWaiting (): boolean {
    return this.blocked || !this.backlog.empty
  }

  #wake (): void {
    this.#waiter?.()
    this.#waiter = null
  }

  /** Discards waiting frames, and wakes a waiting source. @internal */
  protected stopSending (): void {
    this.backlog.clear()
    this.#wake()
  }

  /** @internal */
  protected release (): void {
    this.writer.release()
    this.#dropUnfinished()
    this.stopSending()
  }
}
