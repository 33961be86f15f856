import type { Writable } from 'node:stream'
import { Backlog, type BacklogHost } from './backlog.js'
import type { Broker, GapReason } from '../log/broker.js'
import type { Target } from '../events/target.js'
import { Chunk, type ChunkMemo } from '../wire/chunk.js'
import { assertCloseReason, shouldReconnect, type CloseReason } from './close-reason.js'
import { StreamEnded } from '../errors.js'
import { EventPriority } from '../events/event.js'
import { encodeControl, encodeComment, encodeRetry, encodeIdBlock } from '../wire/encoding.js'
import type { Flushable } from '../delivery/flusher.js'
import type { Turns } from '../delivery/replay-scheduler.js'
import { Frame } from '../delivery/frame.js'
import type { Log } from '../util/logger.js'
import { inNoContext } from '../util/async-context.js'
import { assertTopic } from '../events/topic.js'
import { destroyTransport, isGone, sendHead, type HttpResponse } from '../wire/http.js'
import { Writer, type Opening } from '../wire/writer.js'
import type { NotificationInput, EventInput, ResourcePayload, ResourceName } from '../events/event-input.js'
import type { ClientInfo } from '../events/subscriber.js'
import type { ConnectionStats } from './statistics.js'

/** Whom a connection is for; fixed before it opens. @internal */
export interface ConnectionProfile {
  readonly clientId: string
  readonly userId: string | null
  readonly claims: unknown
  /** When the rights end, in milliseconds since the epoch. */
  readonly expiresAt: number | undefined
  readonly clientInfo: ClientInfo
  readonly lastEventId: string | null
  readonly managed: boolean
  /** The topics and patterns it holds from the start. It is the connection's own from here on. */
  readonly held: Set<string>
  /** A HEAD request: there is no body. */
  readonly headOnly: boolean
  readonly retryMs: number
}

/** What a connection needs of its manager. @internal */
export interface ConnectionHost extends BacklogHost {
  readonly log: Log
  /** Whether silence is filled with comments. */
  readonly keepAlive: boolean
  readonly keepAliveIntervalMs: number
  readonly stallTimeoutMs: number
  readonly maxConnectionAgeMs: number
  readonly drainMs: number
  /** The time, in milliseconds of the clock that `schedule` goes by. */
  now (): number
  /** The same, up to a tick ago: for what is noted with every write. */
  readonly lately: number
  /** How long the event loop has run, in milliseconds: while it stands still, no socket takes a byte. */
  readonly ran: number
  mark (connection: SSEConnection): void
  schedule (connection: SSEConnection, dueAt: number): void
  /** The connection has room to read on from the log. */
  wantsPage (connection: SSEConnection): void
  frameOf (connection: SSEConnection, event: EventInput): Frame
  isTarget (connection: SSEConnection, target: Target): boolean
  covers (connection: SSEConnection, topic: string): boolean
  readonly keepAliveChunk: Chunk
  /** First blocks, and those that keep a place: the same for all that open, or are silent, while nothing is published. */
  readonly greetings: ChunkMemo
  readonly places: ChunkMemo
  addSubscription (clientId: string, subscription: string): Promise<void>
  removeSubscription (clientId: string, subscription: string): Promise<boolean>
  ended (connection: SSEConnection, reason: string): void
}

type State = 'opening' | 'open' | 'closing' | 'closed'

const PUMP_BYTES = 16 * 1024
/** No sequence number. */
const NO_PLACE = -1
const GREETING = encodeComment('stream')

// A Member of the registry and Timed by the wheel. `implements` would say so in the published types too, which leave out what is internal.
/**
 * One open stream. Made by `reply.sse()` or `createConnection()` only; ended once, by the `close` event of its response.
 * Sending to a connection that has ended returns `false`; it never throws and never waits.
 */
export class SSEConnection {
  // What each event touches stands first: side by side in memory, it is fetched together.
  /** @internal */ readonly managed: boolean
  /** @internal */ mark = 0
  /** See `WriterOwner`. @internal */ blocked = true
  /** @internal */ next: Flushable | null = null
  #reason: string | null = null
  #state: State = 'opening'
  readonly #host: ConnectionHost
  readonly #writer: Writer
  readonly #backlog: Backlog
  #sentPosition = 0
  #sent = 0
  #lastWriteAt = 0
  /** What is being written in pieces, for as long as it is. */
  #unfinished: readonly Frame[] | null = null
  #waiter: (() => void) | null = null
  /** Made for this stream; a client that comes back gets another. */
  readonly clientId: string
  /** Who it is; null for nobody. */
  readonly userId: string | null
  /** What the application's `authHandler` returned beside the user. */
  readonly claims: unknown
  /** From where and since when; and what the application gave as `clientInfo`. */
  readonly clientInfo: ClientInfo
  /** What the client sent as `Last-Event-ID` (header, or `lastEventId` in the query), null on a first connect. */
  readonly lastEventId: string | null
  /** @internal */ readonly held: Set<string>
  /** @internal */ index = -1
  /** @internal */ dueAt = Infinity
  /** @internal */ slot = -1
  /** @internal */ slotIndex = 0
  readonly #response: HttpResponse
  readonly #retryMs: number
  readonly #headOnly: boolean
  /** By the host's clock. */
  readonly #endsAt: number
  readonly #expires: boolean
  /** By the wall clock, in milliseconds since the epoch; Infinity for rights without an end. */
  readonly #expiresAt: number
  /** Since when the socket has been waited for, by `host.ran`. */
  #waitingSince = 0
  /** How many decisions about its rights it waits for. */
  #holds = 0
  /** While it waits: whether the socket is full. */
  #socketBlocked = false
  #abort: AbortController | null = null
  /** Whether the application has it: before, there was no chance to listen to its signal. */
  #handedOver = false
  #onOpened: ((open: boolean) => void) | null = null

  /** @internal */
  constructor (host: ConnectionHost, response: HttpResponse, profile: ConnectionProfile) {
    this.#host = host
    this.#response = response
    this.clientId = profile.clientId
    this.userId = profile.userId
    this.claims = profile.claims
    this.clientInfo = profile.clientInfo
    this.lastEventId = profile.lastEventId
    this.managed = profile.managed
    this.held = profile.held
    this.#retryMs = profile.retryMs
    this.#headOnly = profile.headOnly
    const now = host.now()
    this.#expiresAt = profile.expiresAt ?? Infinity
    const expiresAt = now + this.#expiresAt - Date.now()
    // Ages are spread by a fifth, so that clients that came together do not return together.
    const tooOldAt = host.maxConnectionAgeMs === 0 ? Infinity : now + host.maxConnectionAgeMs * (0.8 + 0.2 * Math.random())
    this.#endsAt = Math.min(expiresAt, tooOldAt)
    this.#expires = expiresAt <= tooOldAt
    this.#writer = new Writer(response, this, host.budget)
    this.#backlog = new Backlog(host)
    // From here on deliveries may come, head or not: the place in the log is fixed now.
    if (this.managed && this.lastEventId !== null) this.#backlog.resume(this.lastEventId)
  }

  get isAuthenticated (): boolean {
    return this.userId !== null
  }

  /** True from the first byte of the response until its end has begun. */
  get isConnected (): boolean {
    return this.#state === 'open'
  }

  /** The topics and patterns this connection holds. */
  get subscriptions (): ReadonlySet<string> {
    return this.held
  }

  /**
   * Aborts when the stream ends, whatever ends it. Its reason is an error with the name `AbortError`, the code SSE_ERR_STREAM_ENDED
   * and the close reason as `closeReason`. It never aborts before the turn in which `reply.sse()` or `createConnection()` resolves is over.
   */
  get signal (): AbortSignal {
    if (this.#abort === null) {
      this.#abort = new AbortController()
      if (this.#state === 'closed' && this.#handedOver) this.#abortSignal()
    }
    return this.#abort.signal
  }

  /** Why the stream ended, or is ending; null while it is open. */
  get closeReason (): string | null {
    return this.#reason
  }

  /**
   * Whether it holds the topic, or a pattern that covers it and, with `authorizeTopic`, may hear it.
   * @throws SSE_ERR_INVALID_TOPIC
   */
  hasSubscription (topic: string): boolean {
    assertTopic(topic)
    return inNoContext(() => this.#host.covers(this, topic))
  }

  /**
   * Sends one event to this client only: not logged, no id, not replayed.
   * @returns false when the connection has ended, or is so slow that the event was dropped at once. One that waits may still be dropped for more urgent ones; `stats()` counts it.
   * @throws SSE_ERR_INVALID_* when the event cannot be sent to anybody, SSE_ERR_EVENT_TOO_LARGE above `maxEventBytes`.
   */
  sendEvent (event: EventInput): boolean {
    if (this.#hasEnded()) return false
    return this.receive(this.#host.frameOf(this, event))
  }

  /** Sends `{"resource":…,"data":…}` as event `data` to this client only. See `sendEvent`. */
  sendData<R extends ResourceName> (resource: R, data: ResourcePayload<R>): boolean {
    return this.sendEvent({ event: 'data', data: { resource, data } } as EventInput)
  }

  /** Sends a notification to this client only, with priority HIGH. See `sendEvent`. */
  sendNotification (notification: NotificationInput): boolean {
    return this.sendEvent({ event: 'notification', data: { level: 'info', ...notification }, priority: EventPriority.HIGH } as EventInput)
  }

  /** @see SSEManager.addSubscription */
  addSubscription (subscription: string): Promise<void> {
    return this.#host.addSubscription(this.clientId, subscription)
  }

  /** @see SSEManager.removeSubscription */
  removeSubscription (subscription: string): Promise<boolean> {
    return this.#host.removeSubscription(this.clientId, subscription)
  }

  stats (): ConnectionStats {
    const { dropped, bytes, lagging } = this.#backlog
    return { sentEvents: this.#sent, droppedEvents: dropped, queuedBytes: bytes + this.#writer.queuedBytes, lagging }
  }

  /**
   * Ends the stream: what waits in this turn is written, then the client's place and `sse:close` with the reason. Events
   * that a slow client has not read stay in the log for its return.
   * @param reason one of `CloseReason`, or the application's own: `a-z`, `0-9` and `-`, at most 64.
   * @throws SSE_ERR_INVALID_CLOSE_REASON
   */
  close (reason: string = 'closed'): void {
    assertCloseReason(reason)
    if (this.#hasEnded()) return
    this.#reason = reason
    if (this.#state === 'opening') return
    this.flush()
    this.#state = 'closing'
    const { drainMs } = this.#host
    const farewell = new Chunk(this.#farewell(reason))
    this.#backlog.clear()
    this.#waitingSince = this.#host.ran
    this.#host.schedule(this, this.#host.now() + drainMs)
    this.#writer.end(farewell, reason === 'shutdown' ? drainMs : null)
    this.#wake()
  }

  #farewell (reason: string): string {
    let text = ''
    // Coming back before the server has finished closing would be answered with an error, which is final (FACTS 2.5).
    const retryMs = reason === 'shutdown' ? Math.max(this.#retryMs, this.#host.drainMs) : this.#retryMs
    if (reason === 'shutdown' || reason === 'max-age' || reason === 'rights-unknown') text += encodeRetry(Math.min(Math.round(retryMs * (1 + Math.random())), 3_600_000))
    return text + this.#place() + encodeControl('close', { reason, reconnect: shouldReconnect(reason) })
  }

  /** The block that tells the client its place, if it may be told. */
  #place (): string {
    const place = this.managed ? this.#backlog.cursor : null
    return place === null ? '' : encodeIdBlock(place)
  }

  // A private getter costs a call into the engine's runtime at each event.
  #hasEnded (): boolean {
    return this.#reason !== null
  }

  // --- The life of a connection, called by its manager ---

  /** Resolves with true once the head is sent, with false when that will not happen any more. @internal */
  opened (): Promise<boolean> {
    if (this.#state !== 'opening') return Promise.resolve(this.#state === 'open')
    return new Promise(resolve => { this.#onOpened = resolve })
  }

  /**
   * Sends the head and the first block, and goes live from this moment, or from the client's cursor.
   * @param destination where to write: the response, or a stream that leads to it, such as a compressor.
   * @internal
   */
  open (destination: Writable, opening: Opening = {}): void {
    // Somebody may have answered in the meantime, such as a handlerTimeout: then only the end is to come.
    if (this.#state !== 'opening' || isGone(this.#response)) return
    if (this.#headOnly) {
      this.#reason = 'head'
      this.#state = 'closing'
      if (opening.headers !== undefined) sendHead(this.#response, opening.headers)
      this.#writer.endResponse()
      return this.#tellOpened(false)
    }
    const host = this.#host
    // A client that is behind is told its own place, which is not that of the log yet.
    this.#sentPosition = this.#backlog.behind ? NO_PLACE : host.position
    this.#writer.open(destination, opening, host.greetings.of(GREETING + encodeRetry(this.#retryMs) + this.#place()))
    // What wraps the response may have thrown.
    if (this.#state === 'opening') this.#state = 'open'
    this.#wrote()
    if (this.#holds > 0) this.#block()
    host.schedule(this, this.#nextDue(host.lately))
    if (this.#backlog.behind) host.mark(this)
    this.#tellOpened(true)
    const reason = this.#reason
    if (reason !== null) {
      this.#reason = null
      this.close(reason)
    }
  }

  /**
   * The application gets the connection. If its stream has ended meanwhile, as that of a HEAD request, the signal aborts a turn
   * later: whatever listens by then hears of it. @internal
   */
  handOver (): void {
    if (this.#state !== 'closed') {
      this.#handedOver = true
      return
    }
    setImmediate(() => {
      this.#handedOver = true
      this.#abortSignal()
    })
  }

  #abortSignal (): void {
    this.#abort?.abort(new StreamEnded(this.#reason!))
  }

  /** Takes a frame for the end of this turn. False when it was dropped. @internal */
  receive (frame: Frame): boolean {
    if (this.#hasEnded()) return false
    if (!this.blocked && this.#backlog.overflows(frame)) this.flush()
    const taken = this.#backlog.receive(frame, this.blocked)
    if (!this.blocked || !this.#backlog.behind) this.#host.mark(this)
    return taken
  }

  /** Writes what has come in this turn. @internal */
  flush (): void {
    if (this.#state !== 'open') return
    if (this.blocked) this.#backlog.spill()
    const batch = this.#backlog.takeBatch()
    if (batch !== null) {
      if (batch.frame!.seq > 0) this.#sentPosition = batch.frame!.seq
      this.#write(batch.chunk)
      this.#sent += batch.events
      if (this.#writer.hasRest) this.#keepUnfinished(batch.frames)
      // Usually that was all: who has an outbox has no batch.
      else if (this.#waiter === null) return
    }
    this.#pump()
  }

  /** Reads the next page of what this connection has missed. Rejects when the log cannot be read. @internal */
  async readPage (broker: Broker, turns: Turns): Promise<void> {
    if (this.#state !== 'open') return
    try {
      await this.#backlog.readPage(broker, turns, message => this.#host.isTarget(this, message.target))
    } finally {
      this.#pump()
    }
  }

  /** The log has lost its continuity: what this connection holds of it is void. @internal */
  fallOut (reason: GapReason): void {
    if (!this.managed || this.#hasEnded()) return
    this.#backlog.fallOut(reason)
    // A number of another epoch is another place.
    this.#sentPosition = NO_PLACE
    this.#host.mark(this)
  }

  /** Removes the waiting frames that are not for this connection any more. A frame that is being written goes on. @internal */
  sift (): void {
    if (this.#state !== 'closed') inNoContext(() => this.#backlog.sift(target => this.#host.isTarget(this, target)))
  }

  /** Rights of this user have changed: what waits is looked at again. @internal */
  reconsider (): void {
    this.sift()
    const unfinished = this.#unfinished
    if (unfinished === null || inNoContext(() => unfinished.every(({ target }) => target === null || this.#host.isTarget(this, target)))) return
    // Nothing can be taken out of what is being written; cut, the client comes back to what it may see now.
    this.#reason = 'revoked' satisfies CloseReason
    this.#destroy()
  }

  /** Nothing more is written until `letGo`, as if the socket were full. A stream whose rights are still unknown after `stallTimeoutMs` ends. @internal */
  hold (): void {
    if (++this.#holds > 1) return
    this.#block()
    if (this.#state === 'open') this.#wait()
  }

  #block (): void {
    this.#socketBlocked = this.blocked
    this.blocked = true
  }

  /** @internal */
  letGo (): void {
    if (--this.#holds > 0) return
    this.blocked = this.#socketBlocked
    if (this.blocked) this.#waitingSince = this.#host.ran
    else this.#host.mark(this)
  }

  /** @internal */
  tellUnsubscribed (subscriptionId: string, reason: string): void {
    this.receive(new Frame('', encodeControl('unsubscribed', { subscriptionId, reason }), EventPriority.CRITICAL))
  }

  /** The source has failed: the client is told no more than that, and the stream ends. @internal */
  fail (): void {
    if (this.#hasEnded()) return
    this.receive(new Frame('', encodeControl('error', { message: 'The source of this stream failed' }), EventPriority.NORMAL))
    this.close('source-error')
  }

  /** Resolves when everything taken so far is with the HTTP layer, or the connection has ended. @internal */
  drained (): Promise<void> {
    if (this.#hasEnded() || !this.#isWaiting()) return Promise.resolve()
    return new Promise(resolve => { this.#waiter = resolve })
  }

  /** Whether a source should wait before it adds this frame: of what a source made, nothing is dropped. @internal */
  crowdedFor (frame: Frame): boolean {
    if (this.#hasEnded()) return false
    const { behind, textBytes } = this.#backlog
    return this.blocked || behind || (textBytes > 0 && textBytes + frame.textBytes > Math.min(PUMP_BYTES, this.#host.outboxBytes))
  }

  #isWaiting (): boolean {
    return this.blocked || !this.#backlog.empty
  }

  /** @internal */
  onTime (now: number): void {
    const host = this.#host
    if (this.#state === 'closing') {
      const leftMs = host.drainMs - this.#waitedMs()
      return leftMs > 0 ? host.schedule(this, now + leftMs) : this.#destroy()
    }
    if (now >= this.#endsAt) return this.close(this.#expires ? 'auth-expired' : 'max-age')
    const { blocked } = this
    if (blocked && host.stallTimeoutMs > 0 && this.#waitedMs() >= host.stallTimeoutMs) {
      return this.#holds > 0 ? this.close('rights-unknown' satisfies CloseReason) : this.#cut('stalled')
    }
    if (!blocked) this.#keepAlive(now)
    host.schedule(this, this.#nextDue(now))
  }

  /** The wall clock has run ahead of the host's. @internal */
  onClockAhead (): void {
    if (Date.now() >= this.#expiresAt) this.close('auth-expired')
  }

  /** @internal */
  onWriteError (err: unknown): void {
    this.#cut('closed')
    this.#host.log.error({ err, clientId: this.clientId }, 'What wraps the response of an event stream threw; the stream is cut')
  }

  /** The time for a graceful end is over. @internal */
  cutShort (): void {
    if (this.#state === 'closing') this.#destroy()
  }

  /** @internal */
  onDrain (): void {
    if (this.#holds > 0) return this.#block()
    this.#pump()
  }

  // --- Inside ---

  #write (chunk: Chunk): void {
    this.#writer.write(chunk)
    this.#wrote()
  }

  #wrote (): void {
    const host = this.#host
    this.#lastWriteAt = host.lately
    if (this.blocked) this.#wait()
  }

  /** From now on it waits: for its socket, or for a decision about its rights. */
  #wait (): void {
    const host = this.#host
    this.#waitingSince = host.ran
    const stalledAt = host.now() + host.stallTimeoutMs
    if (host.stallTimeoutMs > 0 && stalledAt < this.dueAt) host.schedule(this, stalledAt)
  }

  /** Writes what waits for as long as the socket takes it, and asks for more when there is room. */
  #pump (): void {
    if (this.#state !== 'open') return
    while (!this.blocked) {
      if (this.#writer.writeRest()) {
        this.#wrote()
        continue
      }
      this.#dropUnfinished()
      const taken = this.#backlog.take(PUMP_BYTES)
      if (taken === null) break
      this.#sent += taken.frames.length
      this.#write(new Chunk(taken.text))
      if (this.#writer.hasRest) this.#keepUnfinished(taken.frames)
    }
    // A page is read only for a socket that has taken all there was: until then a lagging connection holds its place, and nothing else.
    if (this.blocked) return
    if (this.#backlog.wantsPage) this.#host.wantsPage(this)
    this.#backlog.settle()
    if (!this.#isWaiting()) this.#wake()
  }

  /** Of what is written in pieces the frames are looked at when rights change: until then they take memory beside the pieces. */
  #keepUnfinished (frames: readonly Frame[]): void {
    this.#unfinished = frames
    for (const frame of frames) this.#host.budget.hold(frame)
  }

  #dropUnfinished (): void {
    if (this.#unfinished === null) return
    for (const frame of this.#unfinished) this.#host.budget.release(frame)
    this.#unfinished = null
  }

  #keepAlive (now: number): void {
    const { position, keepAlive, keepAliveIntervalMs } = this.#host
    // The log has moved on with nothing for this client: a block without an event keeps its place.
    if (this.managed && this.#sentPosition !== position && this.#backlog.empty) {
      this.#sentPosition = position
      this.#write(this.#host.places.of(this.#place()))
    } else if (keepAlive && now - this.#lastWriteAt >= keepAliveIntervalMs) {
      this.#write(this.#host.keepAliveChunk)
    }
  }

  #nextDue (now: number): number {
    const { keepAliveIntervalMs, stallTimeoutMs } = this.#host
    const { blocked } = this
    // Silence begins with the last write; once it has been looked at, with that look.
    const silentSince = blocked || this.#lastWriteAt + keepAliveIntervalMs <= now ? now : this.#lastWriteAt
    const due = Math.min(this.#endsAt, silentSince + keepAliveIntervalMs)
    return blocked && stallTimeoutMs > 0 ? Math.min(due, now + stallTimeoutMs - this.#waitedMs()) : due
  }

  /** How long the socket has had to take what was written. */
  #waitedMs (): number {
    return this.#host.ran - this.#waitingSince
  }

  #tellOpened (open: boolean): void {
    const tell = this.#onOpened
    this.#onOpened = null
    tell?.(open)
  }

  #wake (): void {
    const waiter = this.#waiter
    this.#waiter = null
    waiter?.()
  }

  /** Ends the stream without a word: nobody reads it. */
  #cut (reason: CloseReason): void {
    this.#reason ??= reason
    this.#state = 'closing'
    this.#destroy()
  }

  #destroy (): void {
    this.#host.schedule(this, Infinity)
    destroyTransport(this.#response, this.#reason === 'shutdown')
  }

  /** The one way out. @internal */
  finish (): void {
    if (this.#state === 'closed') return
    const reason = (this.#reason ??= (this.#headOnly ? 'head' : 'client') satisfies CloseReason)
    this.#state = 'closed'
    this.#host.ended(this, reason)
    this.#writer.release()
    this.#backlog.clear()
    this.#dropUnfinished()
    this.#tellOpened(false)
    this.#wake()
    if (this.#handedOver) this.#abortSignal()
  }
}
