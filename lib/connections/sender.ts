import type { Broker, GapReason } from '../log/broker.js'
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
import type { CloseReason } from './close-reason.js'
import type { ConnectionContext } from './context.js'
import type { ConnectionStats } from './statistics.js'

/** The states of a stream, in order. */
export type ConnectionState = 'opening' | 'open' | 'closing' | 'closed'

const PUMP_BYTES = 16 * 1024
/** No sequence number. */
export const NO_POSITION = -1

/** The sending half of a connection: receives frames, writes them as fast as the client reads, and reads from the log what the client has missed. */
export abstract class Sender {
  // What each event touches stands first: side by side in memory, it is fetched together.
  /** @internal */ readonly managed: boolean
  /** @internal */ mark = 0
  /** See `WriterOwner`. @internal */ blocked = true
  /** @internal */ next: Flushable | null = null
  /** Why the stream ended, or is ending. @internal */ protected reason: string | null = null
  /** @internal */ protected state: ConnectionState = 'opening'
  /** @internal */ protected readonly context: ConnectionContext
  /** @internal */ protected readonly writer: Writer
  /** @internal */ protected readonly backlog: Backlog
  /** The position of the log that the client has been sent. */
  #sentPosition = 0
  #sent = 0
  /** By the wheel's clock. @internal */ protected lastWriteAt = 0
  /** The frames that are being written in pieces, for as long as they are. */
  #unfinished: readonly Frame[] | null = null
  #waiter: (() => void) | null = null
  /** How many decisions about the user's rights the stream waits for. */
  #holds = 0
  /** While it waits for decisions: whether the socket is full. */
  #socketBlocked = false

  /** @internal */
  constructor (context: ConnectionContext, response: HttpResponse, managed: boolean) {
    this.context = context
    this.managed = managed
    this.writer = new Writer(response, this, context.budget)
    this.backlog = new Backlog(context)
  }

  /** What this connection has sent, dropped and queued so far. */
  stats (): ConnectionStats {
    const { dropped, bytes, lagging } = this.backlog
    return { sentEvents: this.#sent, droppedEvents: dropped, queuedBytes: bytes + this.writer.queuedBytes, lagging }
  }

  /** True from the first byte of the response until its end has begun. */
  get isConnected (): boolean {
    return this.state === 'open'
  }

  // --- What the life of the connection decides ---

  /** Whether a message with this target is for the connection, as things stand now. @internal */
  protected abstract isTarget (target: Target): boolean
  /** The stream waits from now on, for its socket or for a decision about rights. @internal */
  protected abstract onWait (): void
  /** Destroys the stream without a close event. @internal */
  protected abstract cut (reason: CloseReason): void
  /** See `WriterOwner`. @internal */
  abstract onWriteError (error: unknown): void
  /** See `WriterOwner`. @internal */
  abstract finish (): void

  // --- Frames ---

  // A private getter costs a call into the engine's runtime at each event.
  /** @internal */
  protected hasEnded (): boolean {
    return this.reason !== null
  }

  #marked (): void {
    (this.managed ? this.context.flusher : this.context.sourceFlusher).mark(this)
  }

  /** Takes a frame for the end of this turn. False when it was dropped. @internal */
  receive (frame: Frame): boolean {
    if (this.hasEnded()) return false
    if (!this.blocked && this.backlog.overflows(frame)) this.flush()
    const taken = this.backlog.receive(frame, this.blocked)
    if (!this.blocked || !this.backlog.behind) this.#marked()
    return taken
  }

  /** Writes what has come in this turn. @internal */
  flush (): void {
    if (this.state !== 'open') return
    if (this.blocked) this.backlog.spill()
    const batch = this.backlog.takeBatch()
    if (batch !== null) {
      if (batch.frame!.seq > 0) this.#sentPosition = batch.frame!.seq
      this.write(batch.chunk)
      this.#sent += batch.events
      if (this.writer.hasRest) this.#keepUnfinished(batch.frames)
      // Usually nothing else is queued: a connection with an outbox has no batch.
      else if (this.#waiter === null) return
    }
    this.#pump()
  }

  /** Writes what waits for as long as the socket takes it, and asks for more when there is room. */
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
      this.#sent += taken.frames.length
      this.write(new Chunk(taken.text))
      if (this.writer.hasRest) this.#keepUnfinished(taken.frames)
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

  /** The head and the first block have been written, with the cursor of the client or, if it is level with the log, that of the log. @internal */
  protected goLive (position: number): void {
    this.#sentPosition = position
    this.#wrote()
    if (this.#holds > 0) this.#waitForRights()
    if (this.backlog.behind) this.#marked()
  }

  /** Frames that are written in pieces are checked when rights change: until then they take memory beside the pieces. */
  #keepUnfinished (frames: readonly Frame[]): void {
    this.#unfinished = frames
    for (const frame of frames) this.context.budget.hold(frame)
  }

  #dropUnfinished (): void {
    if (this.#unfinished === null) return
    for (const frame of this.#unfinished) this.context.budget.release(frame)
    this.#unfinished = null
  }

  /** @internal */
  onDrain (): void {
    if (this.#holds > 0) return this.#waitForRights()
    this.#pump()
  }

  // --- The log ---

  /** Reads the next page of what this connection has missed. Rejects when the log cannot be read. @internal */
  async readPage (broker: Broker, turns: Turns): Promise<void> {
    if (this.state !== 'open') return
    try {
      await this.backlog.readPage(broker, turns, message => this.isTarget(message.target))
    } finally {
      this.#pump()
    }
  }

  /** The log has lost its continuity: what this connection holds of it is void. @internal */
  fallOut (reason: GapReason): void {
    if (!this.managed || this.hasEnded()) return
    this.backlog.fallOut(reason)
    // A number of another epoch is another position.
    this.#sentPosition = NO_POSITION
    this.#marked()
  }

  /** The block that tells the client its cursor; empty while no cursor may be told. @internal */
  protected cursorBlock (): string {
    const cursor = this.managed ? this.backlog.cursor : null
    return cursor === null ? '' : encodeIdBlock(cursor)
  }

  /** Tells the client the position of the log if that has moved on with nothing for it. Returns whether it had. @internal */
  protected keepCursor (): boolean {
    const { eventLog: { position }, cursors } = this.context
    if (!this.managed || this.#sentPosition === position || !this.backlog.empty) return false
    this.#sentPosition = position
    this.write(cursors.of(this.cursorBlock()))
    return true
  }

  // --- Rights ---

  /** Removes the waiting frames that are not for this connection any more. A frame that is being written goes on. @internal */
  sift (): void {
    if (this.state !== 'closed') inNoContext(() => this.backlog.sift(target => this.isTarget(target)))
  }

  /** Rights of this user have changed: what waits is looked at again. @internal */
  reconsider (): void {
    this.sift()
    const unfinished = this.#unfinished
    if (unfinished === null || inNoContext(() => unfinished.every(({ target }) => target === null || this.isTarget(target)))) return
    // Bytes handed to the socket cannot be withdrawn: the stream is destroyed, and the client reconnects with its new rights.
    this.reason = 'revoked'
    this.cut('revoked')
  }

  /** Nothing more is written until `letGo`, as if the socket were full. A stream whose rights are still unknown after `stallTimeoutMs` ends. @internal */
  hold (): void {
    if (++this.#holds > 1) return
    // A client that is stalled stays so, however often its rights are asked about.
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
  letGo (): void {
    if (--this.#holds > 0) return
    this.blocked = this.#socketBlocked
    if (!this.blocked) this.#marked()
  }

  /** Whether the stream waits for a decision about rights, and for nothing else. @internal */
  protected get waitsForRights (): boolean {
    return this.#holds > 0 && !this.#socketBlocked
  }

  // --- Sources ---

  /** Resolves when everything taken so far is with the HTTP layer, or the connection has ended. @internal */
  drained (): Promise<void> {
    if (this.hasEnded() || !this.#isWaiting()) return Promise.resolve()
    return new Promise(resolve => { this.#waiter = resolve })
  }

  /** Whether a source should wait before it adds this frame: of what a source made, nothing is dropped. @internal */
  crowdedFor (frame: Frame): boolean {
    if (this.hasEnded()) return false
    const { behind, textBytes } = this.backlog
    return this.blocked || behind || (textBytes > 0 && textBytes + frame.textBytes > Math.min(PUMP_BYTES, this.context.outboxBytes))
  }

  #isWaiting (): boolean {
    return this.blocked || !this.backlog.empty
  }

  #wake (): void {
    const waiter = this.#waiter
    this.#waiter = null
    waiter?.()
  }

  // --- The end ---

  /** Nothing is taken any more: what waits is dropped, and a source that waits goes on. @internal */
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
