import { ServerResponse, type IncomingMessage } from 'node:http'
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2'
import type { Socket } from 'node:net'
import type { Writable } from 'node:stream'
import type { Broker, GapReason, Target } from './broker.js'
import { Chunk } from './chunk.js'
import { formatCursor, parseCursor } from './cursor.js'
import { encodeComment, encodeControl, encodeCursor, encodeRetry, EventPriority } from './event.js'
import { Batch, Frame } from './frame.js'
import { Outbox, type Budget } from './outbox.js'
import { holds } from './registry.js'
import type { EventInput, NotificationInput, ResourceName, ResourcePayload } from '../types/index.js'

export type HttpRequest = IncomingMessage | Http2ServerRequest
export type HttpResponse = ServerResponse | Http2ServerResponse

/**
 * Why a stream ended. The application may add words of its own (`closeConnection(clientId, 'kicked')`).
 * - `client`: the client left, or the network did.
 * - `closed`: the application closed it without a reason of its own.
 * - `disconnected`: `disconnectUser`.
 * - `shutdown`: the server is closing; clients come back by themselves.
 * - `max-age`: `maxConnectionAgeMs` is over; clients come back by themselves.
 * - `auth-expired`: `expiresAt` has passed.
 * - `stalled`: the socket took no byte for `stallTimeoutMs`.
 * - `source-end`, `source-error`: the source of `reply.sse(source)` ended, or failed.
 * - `head`: it was a HEAD request.
 */
export type CloseReason = 'client' | 'closed' | 'disconnected' | 'shutdown' | 'max-age' | 'auth-expired' | 'stalled' | 'source-end' | 'source-error' | 'head'
export const CLOSE_REASONS: readonly CloseReason[] = ['client', 'closed', 'disconnected', 'shutdown', 'max-age', 'auth-expired', 'stalled', 'source-end', 'source-error', 'head']
/** After these a client is told to come back. */
const RECONNECT: ReadonlySet<string> = new Set<CloseReason>(['shutdown', 'max-age', 'auth-expired', 'source-error'])

/** Who is connected, from where and since when; and what the application adds. */
export interface ClientInfo {
  readonly ip: string
  readonly userAgent: string
  /** Milliseconds since the epoch. */
  readonly connectedAt: number
  readonly [key: string]: unknown
}

export interface ConnectionStats {
  /** Events written to this client, replayed ones included. */
  readonly sentEvents: number
  /** Ephemeral events dropped because the client was too slow. */
  readonly droppedEvents: number
  /** Bytes that wait for the socket, the kernel's own buffers not counted. */
  readonly queuedBytes: number
  /** Whether the client reads older events from the log. */
  readonly lagging: boolean
}

/** Whom a connection is for; fixed before it opens. */
export interface ConnectionProfile {
  readonly clientId: string
  readonly userId: string | null
  readonly claims: unknown
  /** When the rights end, in milliseconds since the epoch. */
  readonly expiresAt: number | undefined
  readonly clientInfo: ClientInfo
  readonly lastEventId: string | null
  readonly managed: boolean
  /** A HEAD request: there is no body. */
  readonly headOnly: boolean
  readonly retryMs: number
}

/** What a connection needs of its manager. @internal */
export interface ConnectionHost {
  readonly epoch: string
  /** Newest sequence number that has been delivered on this node. */
  readonly position: number
  readonly rootBatch: Batch
  readonly outboxBytes: number
  readonly budget: Budget
  readonly keepAliveIntervalMs: number
  readonly stallTimeoutMs: number
  readonly maxConnectionAgeMs: number
  readonly maxReplayEvents: number
  readonly drainMs: number
  now (): number
  mark (connection: SSEConnection): void
  schedule (connection: SSEConnection, dueAt: number): void
  /** The connection has room to read on from the log. */
  wantsPage (connection: SSEConnection): void
  frameOf (connection: SSEConnection, event: EventInput): Frame
  isTarget (connection: SSEConnection, target: Target): boolean
  keepAlive (): Chunk
  keepPlace (): Chunk
  addSubscription (clientId: string, subscription: string): Promise<void>
  removeSubscription (clientId: string, subscription: string): Promise<boolean>
  ended (connection: SSEConnection, reason: string): void
}

type State = 'opening' | 'open' | 'closing' | 'closed'

// A write larger than this goes in pieces, so that a slow client's progress is seen.
const PIECE_BYTES = 64 * 1024
const PUMP_BYTES = 16 * 1024
const PAGE_EVENTS = 128
const kConnection = Symbol.for('fastify-sse-manager.connection')
type Owned = { [kConnection]?: SSEConnection | undefined }

// A Member of the registry and Timed by the wheel. `implements` would say so in the published types too, which leave out what is internal.
/**
 * One open stream. Made by `reply.sse()` or `createConnection()` only; ended once, by the `close` event of its response.
 * Sending to a connection that has ended returns `false`; it never throws and never waits.
 */
export class SSEConnection {
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
  /** @internal */ readonly managed: boolean
  /** @internal */ readonly held = new Set<string>()
  /** @internal */ index = -1
  /** @internal */ mark = 0
  /** @internal */ dueAt = Infinity
  /** @internal */ slot = -1
  /** @internal */ slotIndex = 0
  /** Whether it waits for the end of the turn. @internal */ marked = false
  readonly #host: ConnectionHost
  readonly #response: HttpResponse
  readonly #retryMs: number
  readonly #headOnly: boolean
  readonly #endsAt: number
  readonly #expires: boolean
  #state: State = 'opening'
  #destination: Writable | null = null
  /** Whether the destination is the socket, which takes HTTP chunks. */
  #framed = false
  #end: (() => void) | null = null
  #blocked = true
  #blockedSince = 0
  #lastWriteAt = 0
  #batch: Batch | null = null
  #outbox: Outbox | null = null
  #rest: Buffer | null = null
  #reading = false
  /** The client's cursor led nowhere: it is told no place before it is told that. */
  #beganWithGap = false
  #placeSent = 0
  #sent = 0
  #dropped = 0
  #reason: string | null = null
  #abort: AbortController | null = null
  #waiter: (() => void) | null = null
  #onOpened: ((open: boolean) => void) | null = null
  #leaveQueue: (() => void) | null = null

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
    this.#retryMs = profile.retryMs
    this.#headOnly = profile.headOnly
    const now = host.now()
    const expiresAt = profile.expiresAt === undefined ? Infinity : now + profile.expiresAt - Date.now()
    // Ages are spread by a fifth, so that clients that came together do not return together.
    const tooOldAt = host.maxConnectionAgeMs === 0 ? Infinity : now + host.maxConnectionAgeMs * (0.8 + 0.2 * Math.random())
    this.#endsAt = Math.min(expiresAt, tooOldAt)
    this.#expires = expiresAt <= tooOldAt
    ;(response as Owned)[kConnection] = this
    response.on('close', onClose)
    response.on('error', onError)
    const ahead = socketAhead(response)
    if (ahead !== null) {
      const finish = () => this.finish()
      ahead.once('close', finish)
      this.#leaveQueue = () => ahead.off('close', finish)
    }
    // From here on deliveries may come, head or not: the place in the log is fixed now.
    if (this.managed && this.lastEventId !== null) this.#resume(this.lastEventId)
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

  /** Aborts when the stream ends, whatever ends it; the reason is the close reason. */
  get signal (): AbortSignal {
    if (this.#abort === null) {
      this.#abort = new AbortController()
      if (this.#state === 'closed') this.#abort.abort(this.#reason)
    }
    return this.#abort.signal
  }

  /** Why the stream ended, or is ending; null while it is open. */
  get closeReason (): string | null {
    return this.#reason
  }

  /** Whether it holds the topic, or a pattern that covers it. */
  hasSubscription (topic: string): boolean {
    return holds(this, topic)
  }

  /**
   * Sends one event to this client only: not logged, no id, not replayed.
   * @returns false when the connection has ended, or is so slow that the event was dropped.
   * @throws SSE_ERR_INVALID_* when the event cannot be sent to anybody, SSE_ERR_EVENT_TOO_LARGE above `maxEventBytes`.
   */
  sendEvent (event: EventInput): boolean {
    if (this.#ended) return false
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
    return {
      sentEvents: this.#sent,
      droppedEvents: this.#dropped + (this.#outbox?.dropped ?? 0),
      queuedBytes: (this.#outbox?.bytes ?? 0) + (this.#batch?.bytes ?? 0) + (this.#rest?.length ?? 0),
      lagging: (this.#outbox?.lagging ?? null) !== null
    }
  }

  /**
   * Ends the stream: what waits in this turn is written, then the client's place and `sse:close` with the reason. Events
   * that a slow client has not read stay in the log for its return.
   * @param reason one of `CloseReason`, or the application's own: `a-z`, `0-9` and `-`.
   */
  close (reason: string = 'closed'): void {
    if (this.#ended) return
    this.#reason = reason
    if (this.#state === 'opening') return
    this.flush()
    this.#state = 'closing'
    const host = this.#host
    const reconnect = RECONNECT.has(reason)
    let farewell = ''
    // Coming back before the server has finished closing would be answered with an error, which is final (FACTS 2.5).
    const retryMs = reason === 'shutdown' ? Math.max(this.#retryMs, host.drainMs) : this.#retryMs
    if (reason === 'shutdown' || reason === 'max-age') farewell += encodeRetry(Math.min(Math.round(retryMs * (1 + Math.random())), 3_600_000))
    if (this.managed) farewell += encodeCursor(this.#cursor())
    farewell += encodeControl('close', { reason, reconnect })
    const destination = this.#destination!
    if (this.#rest !== null) destination.write(this.#rest)
    this.#rest = null
    this.#dropOutbox()
    const chunk = new Chunk(farewell)
    let sent = false
    destination.write(this.#framed ? chunk.framed : chunk.plain, () => {
      if (!sent) this.#endResponse()
    })
    if (reason === 'shutdown') closeTransport(this.#response, host.drainMs)
    // Of a response that has been ended Node thinks that all is sent: a closing server would cut what a slow client has yet to read.
    if (destination.writableLength === 0) {
      sent = true
      this.#endResponse()
    }
    host.schedule(this, host.now() + host.drainMs)
    this.#wake()
  }

  #endResponse (): void {
    if (this.#state !== 'closing') return
    if (this.#end === null) this.#response.end()
    else this.#end()
  }

  get #ended (): boolean {
    return this.#reason !== null
  }

  #cursor (): string {
    const position = this.#host.position
    return formatCursor(this.#host.epoch, this.#outbox?.cursor(position) ?? [position])
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
   * @param end ends what leads to the response; absent: the response is ended.
   * @internal
   */
  open (destination: Writable, end: (() => void) | null = null): void {
    // Somebody may have answered in the meantime, such as a handlerTimeout: then only the end is to come.
    if (this.#state !== 'opening' || isGone(this.#response)) return
    const host = this.#host
    const response = this.#response
    if (this.#headOnly) {
      this.#reason = 'head'
      this.#state = 'closing'
      response.end()
      return this.#tellOpened(false)
    }
    this.#state = 'open'
    this.#end = end
    const wrapped = destination as unknown !== response
    // Head and first block leave in one packet.
    const socket = wrapped || 'stream' in response ? null : response.socket
    socket?.cork()
    if (wrapped) destination.on('error', onError)
    else flushHead(response)
    // A response that chunks its body, on a socket of its own: chunks made once for everybody go straight to the socket.
    this.#framed = !wrapped && isPlainChunked(response)
    const target: Writable = this.#framed ? response.socket! : destination
    this.#destination = target
    ;(target as Owned)[kConnection] = this
    this.#blocked = false
    if (this.#batch !== null) this.#spill()
    this.#placeSent = host.position
    this.#write(new Chunk(encodeComment('stream') + encodeRetry(this.#retryMs) + (this.managed && !this.#beganWithGap ? encodeCursor(this.#cursor()) : '')))
    socket?.uncork()
    host.schedule(this, this.#nextDue(host.now()))
    if (this.#outbox !== null) host.mark(this)
    this.#tellOpened(true)
    const reason = this.#reason
    if (reason !== null) {
      this.#reason = null
      this.close(reason)
    }
  }

  /** Takes a frame for the end of this turn. False when it was dropped. @internal */
  receive (frame: Frame): boolean {
    if (this.#ended) return false
    if (this.#outbox !== null) {
      const taken = this.#outbox.push(frame)
      if (!this.#blocked) this.#host.mark(this)
      return taken
    }
    this.#batch = (this.#batch ?? this.#host.rootBatch).with(frame)
    if (this.#batch.bytes > this.#host.outboxBytes) this.#spill()
    this.#host.mark(this)
    return true
  }

  /** Writes what has come in this turn. @internal */
  flush (): void {
    if (this.#state !== 'open') return
    const batch = this.#batch
    if (batch !== null) {
      if (this.#blocked) {
        this.#spill()
      } else {
        this.#batch = null
        this.#sent += batch.count
        if (batch.frame!.seq > 0) this.#placeSent = batch.frame!.seq
        this.#write(batch.chunk)
      }
    }
    this.#pump()
  }

  /** Reads the next page of what this connection has missed. Rejects when the log cannot be read. @internal */
  async readPage (broker: Broker): Promise<void> {
    const host = this.#host
    const lane = this.#outbox?.lagging ?? null
    if (this.#state !== 'open' || lane === null || this.#reading) return
    this.#reading = true
    try {
      const page = await broker.read({ epoch: host.epoch, after: lane.after, priority: lane.priority, limit: PAGE_EVENTS })
      const outbox = this.#outbox
      const now = outbox?.lagging ?? null
      // While it was read the lane may have been emptied or the connection may have ended.
      if (this.#state !== 'open' || outbox === null || now?.priority !== lane.priority || now.after !== lane.after) return
      if (page.gap !== undefined) {
        outbox.skip(Frame.ofGap(page.gap, formatCursor(host.epoch, outbox.cursor(host.position)), lane.priority, host.position, host.epoch))
        return
      }
      for (const message of page.messages) {
        // What has not been delivered yet will be.
        if (message.seq > host.position) break
        if (host.isTarget(this, message.target) && !outbox.refill(Frame.ofMessage(message, host.epoch))) return
        outbox.advance(lane.priority, message.seq, host.position)
      }
      outbox.advance(lane.priority, Math.min(page.next, host.position), host.position)
    } finally {
      this.#reading = false
      this.#pump()
    }
  }

  /** The log has lost its continuity: what this connection holds of it is void. @internal */
  fallOut (reason: GapReason): void {
    if (!this.managed || this.#ended) return
    const host = this.#host
    this.#batch = null
    this.#dropOutbox()
    this.receive(Frame.ofGap(reason, '', EventPriority.CRITICAL, host.position, host.epoch))
  }

  /** The source has failed: the client is told no more than that, and the stream ends. @internal */
  fail (): void {
    if (this.#ended) return
    this.receive(new Frame('', encodeControl('error', { message: 'The source of this stream failed' }), EventPriority.NORMAL))
    this.close('source-error')
  }

  /** Resolves when everything taken so far is with the HTTP layer, or the connection has ended. @internal */
  drained (): Promise<void> {
    if (this.#ended || !this.#waiting) return Promise.resolve()
    return new Promise(resolve => { this.#waiter = resolve })
  }

  /** Whether a source should wait before it adds this frame: of what a source made, nothing is dropped. @internal */
  crowdedFor (frame: Frame): boolean {
    if (this.#ended) return false
    return this.#blocked || this.#outbox !== null || (this.#batch !== null && this.#batch.bytes + frame.bytes > Math.min(PUMP_BYTES, this.#host.outboxBytes))
  }

  get #waiting (): boolean {
    return this.#blocked || this.#outbox !== null || this.#batch !== null
  }

  /** @internal */
  onTime (now: number): void {
    const host = this.#host
    if (this.#state === 'closing') return this.#destroy()
    if (now >= this.#endsAt) return this.close(this.#expires ? 'auth-expired' : 'max-age')
    if (this.#blocked && host.stallTimeoutMs > 0 && now - this.#blockedSince >= host.stallTimeoutMs) {
      this.#reason = 'stalled'
      return this.#destroy()
    }
    if (!this.#blocked && host.keepAliveIntervalMs > 0) this.#keepAlive(now)
    host.schedule(this, this.#nextDue(now))
  }

  // --- Inside ---

  /** Begins at the client's cursor, or says why that is not possible. */
  #resume (lastEventId: string): void {
    const { epoch, position, maxReplayEvents } = this.#host
    const cursor = parseCursor(lastEventId)
    const oldest = cursor === null ? 0 : Math.min(...cursor.lanes)
    let gap: GapReason | null = null
    if (cursor === null) gap = 'malformed'
    else if (cursor.epoch !== epoch) gap = 'epoch'
    else if (Math.max(...cursor.lanes) > position) gap = 'unknown'
    else if (maxReplayEvents > 0 && position - oldest > maxReplayEvents) gap = 'limit'
    else if (oldest < position) (this.#outbox = new Outbox(this.#host.outboxBytes, this.#host.budget)).startAt(cursor.lanes, position)
    this.#beganWithGap = gap !== null
    if (gap !== null) this.receive(Frame.ofGap(gap, lastEventId, EventPriority.CRITICAL, position, epoch))
  }

  #write (chunk: Chunk): void {
    this.#writeBytes(this.#framed ? chunk.framed : chunk.plain)
  }

  #writeBytes (bytes: Buffer): void {
    // Ended behind our back: bytes after the last chunk would be taken for the next response.
    if (this.#response.writableEnded) return
    this.#lastWriteAt = this.#host.now()
    if (bytes.length > PIECE_BYTES) {
      this.#rest = bytes.subarray(PIECE_BYTES)
      bytes = bytes.subarray(0, PIECE_BYTES)
    }
    const destination = this.#destination!
    const room = destination.write(bytes)
    // A compressor keeps what it was given until it is told otherwise.
    if ('flush' in destination && typeof destination.flush === 'function') destination.flush()
    if (room) return
    this.#blocked = true
    this.#blockedSince = this.#lastWriteAt
    destination.once('drain', onDrain)
    const { stallTimeoutMs } = this.#host
    if (stallTimeoutMs > 0 && this.#blockedSince + stallTimeoutMs < this.dueAt) this.#host.schedule(this, this.#blockedSince + stallTimeoutMs)
  }

  /** @internal */
  onDrain (): void {
    if (this.#state !== 'open') return
    this.#blocked = false
    this.#pump()
  }

  /** Writes from the outbox for as long as the socket takes it. */
  #pump (): void {
    if (this.#state !== 'open') return
    while (!this.#blocked) {
      if (this.#rest !== null) {
        const rest = this.#rest
        this.#rest = null
        this.#writeBytes(rest)
        continue
      }
      if (this.#outbox === null) break
      const { text, count } = this.#outbox.take(PUMP_BYTES, this.#host.epoch, this.#host.position)
      if (count === 0) break
      this.#sent += count
      this.#write(new Chunk(text))
    }
    if (this.#outbox !== null && this.#outbox.roomy) {
      if (this.#outbox.lagging !== null) this.#host.wantsPage(this)
      else if (this.#outbox.idle && !this.#blocked) this.#dropOutbox()
    }
    if (!this.#waiting) this.#wake()
  }

  /** The batch of this turn cannot be written: it waits in the outbox. */
  #spill (): void {
    const outbox = (this.#outbox ??= new Outbox(this.#host.outboxBytes, this.#host.budget))
    for (const frame of this.#batch!.frames) outbox.push(frame)
    this.#batch = null
  }

  #dropOutbox (): void {
    const outbox = this.#outbox
    if (outbox === null) return
    this.#dropped += outbox.dropped
    outbox.discard()
    this.#outbox = null
  }

  #keepAlive (now: number): void {
    const { position, keepAliveIntervalMs } = this.#host
    // The log has moved on with nothing for this client: a block without an event keeps its place.
    if (this.managed && this.#placeSent !== position && this.#outbox === null && this.#batch === null) {
      this.#placeSent = position
      this.#write(this.#host.keepPlace())
    } else if (now - this.#lastWriteAt >= keepAliveIntervalMs) {
      this.#write(this.#host.keepAlive())
    }
  }

  #nextDue (now: number): number {
    const { keepAliveIntervalMs, stallTimeoutMs } = this.#host
    let due = this.#endsAt
    if (this.#blocked) {
      if (stallTimeoutMs > 0) due = Math.min(due, this.#blockedSince + stallTimeoutMs)
      if (keepAliveIntervalMs > 0) due = Math.min(due, now + keepAliveIntervalMs)
    } else if (keepAliveIntervalMs > 0) {
      due = Math.min(due, this.#lastWriteAt + keepAliveIntervalMs)
    }
    return due
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

  #destroy (): void {
    this.#host.schedule(this, Infinity)
    const response = this.#response
    if (!('stream' in response)) response.destroy()
    // A client that has stopped reading does not answer the end of its session either.
    else if (this.#reason === 'shutdown') response.stream.session?.destroy()
    else response.stream.destroy()
  }

  /** The one way out. @internal */
  finish (): void {
    if (this.#state === 'closed') return
    const reason = (this.#reason ??= this.#headOnly ? 'head' : 'client')
    this.#state = 'closed'
    this.#host.ended(this, reason)
    this.#response.off('close', onClose)
    this.#leaveQueue?.()
    this.#destination?.off('drain', onDrain)
    if (this.#destination !== null) (this.#destination as Owned)[kConnection] = undefined
    ;(this.#response as Owned)[kConnection] = undefined
    this.#dropOutbox()
    this.#batch = null
    this.#rest = null
    this.#destination = null
    this.#end = null
    this.#tellOpened(false)
    this.#wake()
    this.#abort?.abort(reason)
  }
}

function onClose (this: HttpResponse): void {
  (this as Owned)[kConnection]?.finish()
}

function onDrain (this: Writable): void {
  (this as Owned)[kConnection]?.onDrain()
}

// Without a listener a write that fails after the end would end the process (FACTS 2.6); `close` follows in every case.
function onError (): void {}

/** A kept-alive socket or session would hold up a closing server (FACTS 2.4): it goes once what was written is sent. */
function closeTransport (response: HttpResponse, drainMs: number): void {
  if ('stream' in response) {
    const { session } = response.stream
    if (session === undefined || session.closed) return
    // A closed session still waits for its client's FIN, which one that is frozen never sends; only its socket can be told not to.
    const { socket } = session
    const destroySoon = socket.destroySoon.bind(socket)
    // By then the streams that were stalled have been destroyed; those of others are not ours to cut.
    const timer = setTimeout(() => { if (session.destroyed) destroySoon() }, drainMs * 1.2 + 50).unref()
    session.once('close', () => clearTimeout(timer))
    session.close()
  } else {
    // Not `end`, which waits for the client's FIN likewise.
    response.once('finish', function (this: ServerResponse) { this.req.socket.destroySoon() })
  }
}

/** `writeHead` alone waits for the first byte of the body (FACTS 2.3). */
function flushHead (response: HttpResponse): void {
  if (response.headersSent) return
  // Said outright, because then it is known that what follows are chunks; not before, as an onSend hook may send something else.
  if (response instanceof ServerResponse && response.req.httpVersion === '1.1') response.setHeader('transfer-encoding', 'chunked')
  // Node's HTTP/2 has it too; its types do not.
  ;(response as ServerResponse).flushHeaders()
}

/** Whether the bytes after the head are HTTP/1.1 chunks written by nobody but us. */
function isPlainChunked (response: HttpResponse): response is ServerResponse {
  return response instanceof ServerResponse &&
    response.write === ServerResponse.prototype.write &&
    response.socket !== null && response.headersSent &&
    response.getHeader('transfer-encoding') === 'chunked'
}

/** Whether the client has gone already, so that no `close` event will come. @internal */
export function isGone (response: HttpResponse): boolean {
  if ('stream' in response) return response.stream === undefined || response.stream.destroyed || response.writableEnded
  return response.destroyed || response.writableEnded || (response.socket ?? socketAhead(response))?.destroyed === true
}

/** Whether the response is somebody's already. @internal */
export function isTaken (response: HttpResponse): boolean {
  return response.headersSent || (response as Owned)[kConnection] !== undefined
}

/** The socket of a pipelined response that is not its turn yet: if that closes first, the response never sees a `close`. */
function socketAhead (response: HttpResponse): Socket | null {
  // Tests by `inject` have a request of their own making.
  return 'stream' in response || response.socket !== null ? null : response.req.socket ?? null
}
