import { randomUUID } from 'node:crypto'
import type { Writable } from 'node:stream'
import { isAcceptable, streamHeaders } from './head.js'
import { assertOrigin, authenticate, authorize, queryOf } from './auth.js'
import type { Broker, GapReason, Message, OutgoingMessage, Sink, Target } from './broker.js'
import { memoryBroker } from './brokers/memory.js'
import { checkBuiltIn, type NotificationLevel } from './catalogue.js'
import { CatchUp } from './catchup.js'
import { Chunk } from './chunk.js'
import { CLOSE_REASONS, isGone, isTaken, SSEConnection, type CloseReason, type ConnectionHost, type HttpRequest, type HttpResponse } from './connection.js'
import { formatCursor } from './cursor.js'
import { ClientGone, Closed, EventTooLarge, FilterNotShared, HeadAlreadySent, InvalidCloseReason, InvalidId, NotAcceptable, TooManyConnections, TooManyIpConnections, TooManySubscriptions, TooManyUserConnections, UnknownConnection } from './errors.js'
import { assertEventName, assertPriority, assertRetry, encodeComment, encodeCursor, EventPriority, serialize } from './event.js'
import { Flusher } from './flush.js'
import { Frame, type Batch } from './frame.js'
import { resolveOptions, type AnyRequest, type ResolvedOptions, type SSEOptions, type SSEUser } from './options.js'
import { Budget } from './outbox.js'
import { isTargeted, Registry } from './registry.js'
import { createTarget } from './target.js'
import { assertSubscription } from './topic.js'
import { Wheel } from './wheel.js'
import type { BroadcastOptions, ConnectOptions, Delivery, EventInput, NotificationInput, ResourceName, ResourcePayload } from '../types/index.js'

/** Where a manager reports what the application should know; Fastify's logger fits. */
export interface Log {
  error (details: object, message: string): void
  warn (details: object, message: string): void
  debug (details: object, message: string): void
}

/** What `createConnection` is given: a request and response of `node:http` or `node:http2`, also in Express's or Koa's coat. */
export interface CreateConnection extends ConnectOptions {
  request: HttpRequest
  response: HttpResponse
  /** Who this is, when the application knows already; null for nobody. Absent: `authHandler` is asked. */
  user?: SSEUser | null
  /** Added to what `authHandler` is given. */
  authData?: Record<string, unknown>
}

/** What a stream is let in with; `reply.sse()` and `createConnection()` both build on it. @internal */
export interface Admission extends CreateConnection {
  /** The request as the application knows it. */
  subject?: AnyRequest
  ip?: string
  managed?: boolean
}

export interface ManagerStats {
  /** Open streams of this node, those with a source of their own included. */
  readonly connections: number
  readonly users: number
  /** Distinct topics and patterns held. */
  readonly subscriptions: number
  /** Messages delivered to this node so far. */
  readonly messages: number
  /** Deliveries: one for each message and connection. */
  readonly delivered: number
  /** Ephemeral events dropped for slow clients. */
  readonly dropped: number
  /** Connections that read older events from the log. */
  readonly lagging: number
  /** Bytes that wait for slow clients, the kernel's own buffers not counted. */
  readonly queuedBytes: number
  /** Streams ended so far, by reason. */
  readonly closed: Readonly<Record<string, number>>
}

interface Receipt {
  delivered: number
  done: boolean
  resolve: (() => void) | null
}

const REASON = /^[a-z0-9-]{1,64}$/
const MAX_KEY_LENGTH = 256
const TICKS_PER_INTERVAL = 10

/**
 * Who is connected to this node, and every way to reach them. Decorates Fastify as `fastify.sse`; without Fastify make
 * one with `new SSEManager(options)`.
 */
export class SSEManager {
  readonly #options: ResolvedOptions
  readonly #log: Log
  readonly #broker: Broker
  readonly #registry = new Registry<SSEConnection>()
  readonly #flusher: Flusher
  readonly #wheel: Wheel
  readonly #catchUp: CatchUp
  readonly #host: ConnectionHost
  readonly #nodeId = randomUUID()
  readonly #receipts = new Map<string, Receipt>()
  readonly #closed: Record<string, number> = {}
  #position = 0
  #published = 0
  #messages = 0
  #delivered = 0
  #dropped = 0
  #opening: Promise<void> | null = null
  #draining: Promise<void> | null = null
  #closing: Promise<void> | null = null
  #onEmpty: (() => void) | null = null
  #keepAlive: Chunk | null = null
  #keepPlace: { position: number, chunk: Chunk } | null = null

  /**
   * @param options see `OptionsSchema`; those that only concern Fastify (`path`, `decorators`, `authStrategies`) have no effect here.
   * @throws SSE_ERR_INVALID_OPTION
   */
  constructor (options: SSEOptions = {}, log: Log = warnings) {
    const resolved = this.#options = resolveOptions(options)
    this.#log = log
    this.#broker = resolved.broker ?? memoryBroker()
    this.#flusher = new Flusher(resolved.flush === 'immediate' ? 0 : resolved.flush.intervalMs)
    this.#catchUp = new CatchUp(this.#broker, err => log.warn({ err }, 'The event log cannot be read; connections that lag wait'))
    const keepAliveIntervalMs = resolved.keepAlive ? resolved.keepAliveIntervalMs : 0
    const intervals = [keepAliveIntervalMs, resolved.stallTimeoutMs, resolved.maxConnectionAgeMs, resolved.drainMs].filter(ms => ms > 0)
    const tickMs = Math.min(1000, Math.max(10, Math.floor(Math.min(...intervals, 10_000) / TICKS_PER_INTERVAL)))
    this.#wheel = new Wheel(tickMs, () => performance.now())
    this.#host = this.#createHost(keepAliveIntervalMs)
  }

  // --- Connections ---

  /**
   * Opens a managed stream on a plain HTTP response: the way in without Fastify. Resolves once the head is sent.
   * @throws SSE_ERR_UNAUTHENTICATED, SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_ORIGIN_FORBIDDEN, SSE_ERR_NOT_ACCEPTABLE,
   * SSE_ERR_TOO_MANY_*, SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_CLIENT_GONE, SSE_ERR_CLOSED: the response is untouched, and `statusCode` says what to answer.
   */
  async createConnection (options: CreateConnection): Promise<SSEConnection> {
    const { request, response } = options
    if (response.headersSent) throw new HeadAlreadySent()
    const connection = await this.admit(options)
    for (const [name, value] of Object.entries(streamHeaders(request))) response.setHeader(name, value)
    response.statusCode = 200
    connection.open(response as unknown as Writable)
    return connection
  }

  /** Everything that can refuse a stream, in order, before the head. The connection is counted from here on. @internal */
  async admit (options: Admission): Promise<SSEConnection> {
    await this.open()
    const { request, response, subject = request, managed = true } = options
    this.#assertOpen()
    if (!isAcceptable(request.headers.accept)) throw new NotAcceptable()
    assertOrigin(this.#options, request)
    const user = options.user === undefined ? await authenticate(this.#options, subject, options.authData) : options.user
    const subscriptions = new Set(options.subscriptions)
    for (const subscription of subscriptions) assertSubscription(subscription)
    if (subscriptions.size > this.#options.maxSubscriptionsPerConnection) throw new TooManySubscriptions(this.#options.maxSubscriptionsPerConnection)
    const userId = user?.userId ?? null
    if (this.#options.authorizeSubscription !== undefined) await Promise.all(Array.from(subscriptions, subscriptionId => authorize(this.#options, { request: subject, userId, claims: user?.claims, subscriptionId })))
    if (options.retryMs !== undefined) assertRetry(options.retryMs)
    this.#assertOpen()
    if (isGone(response)) throw new ClientGone()
    // Begun while the application was asked, or by a second call beside this one.
    if (isTaken(response)) throw new HeadAlreadySent()
    const ip = options.ip ?? request.socket.remoteAddress ?? ''
    this.#assertRoom(userId, ip)
    const connection = new SSEConnection(this.#host, response, {
      clientId: randomUUID(),
      userId,
      claims: user?.claims,
      expiresAt: user?.expiresAt,
      clientInfo: { ...options.clientInfo, ip, userAgent: request.headers['user-agent'] ?? '', connectedAt: Date.now() },
      lastEventId: options.lastEventId === undefined ? lastEventIdOf(request) : options.lastEventId,
      managed,
      headOnly: request.method === 'HEAD',
      retryMs: options.retryMs ?? this.#options.retryMs
    })
    this.#registry.add(connection)
    if (managed) for (const subscription of subscriptions) this.#registry.subscribe(connection, subscription)
    return connection
  }

  /** The open stream with this client id, on this node. */
  getConnection (clientId: string): SSEConnection | undefined {
    return this.#registry.client(clientId)
  }

  /** The open streams of a user, on this node. */
  getConnectionsByUser (userId: string): SSEConnection[] {
    return [...this.#registry.user(userId)]
  }

  /** The open streams of this node that hold exactly this topic or pattern. */
  getConnectionsBySubscription (subscription: string): SSEConnection[] {
    return [...this.#registry.subscription(subscription)]
  }

  /** All open streams of this node. */
  connections (): IterableIterator<SSEConnection> {
    return this.#registry.all()
  }

  /** How many streams are open on this node. */
  get connectionCount (): number {
    return this.#registry.size
  }

  /** Counts and sums of this node, as of now. Costs a look at each connection. */
  stats (): ManagerStats {
    let lagging = 0
    let queuedBytes = 0
    let dropped = this.#dropped
    for (const connection of this.#registry.all()) {
      const stats = connection.stats()
      if (stats.lagging) lagging++
      queuedBytes += stats.queuedBytes
      dropped += stats.droppedEvents
    }
    const { size: connections, users, subscriptions } = this.#registry
    return { connections, users, subscriptions, messages: this.#messages, delivered: this.#delivered, dropped, lagging, queuedBytes, closed: { ...this.#closed } }
  }

  /**
   * Adds a topic or pattern to an open stream; events published from now on arrive. Does nothing when it is held already.
   * @throws SSE_ERR_UNKNOWN_CONNECTION, SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_TOO_MANY_SUBSCRIPTIONS
   */
  async addSubscription (clientId: string, subscription: string): Promise<void> {
    assertSubscription(subscription)
    const connection = this.#known(clientId)
    const { userId, claims } = connection
    await authorize(this.#options, { request: null, userId, claims, subscriptionId: subscription })
    // It may have gone, or been given others, while the application was asked.
    this.#known(clientId)
    if (connection.held.has(subscription)) return
    if (connection.held.size >= this.#options.maxSubscriptionsPerConnection) throw new TooManySubscriptions(this.#options.maxSubscriptionsPerConnection)
    this.#registry.subscribe(connection, subscription)
  }

  /**
   * Takes a topic or pattern from an open stream. Resolves with false when it was not held.
   * @throws SSE_ERR_UNKNOWN_CONNECTION
   */
  async removeSubscription (clientId: string, subscription: string): Promise<boolean> {
    return this.#registry.unsubscribe(this.#known(clientId), subscription)
  }

  /**
   * Ends one stream, with `sse:close` and the reason. Resolves with false when there is none.
   * @param reason `a-z`, `0-9` and `-`, at most 64; default `closed`.
   * @throws SSE_ERR_INVALID_CLOSE_REASON
   */
  async closeConnection (clientId: string, reason: string = 'closed'): Promise<boolean> {
    assertReason(reason)
    const connection = this.#registry.client(clientId)
    connection?.close(reason)
    return connection !== undefined
  }

  /**
   * Ends all streams of a user. Resolves with how many there were.
   * @throws SSE_ERR_INVALID_CLOSE_REASON
   */
  async disconnectUser (userId: string, reason: string = 'disconnected'): Promise<number> {
    assertReason(reason)
    const connections = this.getConnectionsByUser(userId)
    for (const connection of connections) connection.close(reason)
    return connections.length
  }

  // --- Broadcasts ---

  /** Publishes `{"resource":…,"data":…}` as event `data`. See `broadcastEvent`. */
  broadcastData<R extends ResourceName> (resource: R, data: ResourcePayload<R>, options: BroadcastOptions = {}): Promise<Delivery> {
    return this.broadcastEvent({ event: 'data', data: { resource, data } } as EventInput, options)
  }

  /** Publishes a notification, with priority HIGH unless told otherwise. See `broadcastEvent`. */
  broadcastNotification (notification: NotificationInput, options: BroadcastOptions = {}): Promise<Delivery> {
    return this.broadcastEvent(createNotificationEvent(notification), options)
  }

  /** Publishes an event for these users. See `broadcastEvent`. */
  broadcastToUsers (event: EventInput, userIds: readonly string[], options: BroadcastOptions = {}): Promise<Delivery> {
    return this.broadcastEvent(event, { ...options, userIds })
  }

  /** Publishes an event for those who hold one of these topics, or a pattern that covers one. See `broadcastEvent`. */
  broadcastToSubscriptions (event: EventInput, subscriptionIds: readonly string[], options: BroadcastOptions = {}): Promise<Delivery> {
    return this.broadcastEvent(event, { ...options, subscriptionIds })
  }

  /**
   * Publishes an event: checks it, logs it, and delivers it to all whom the target names. Resolves once this node has
   * delivered it; what a slow or returning client has missed it reads from the log.
   * @throws SSE_ERR_INVALID_PAYLOAD, SSE_ERR_UNKNOWN_EVENT, SSE_ERR_UNKNOWN_RESOURCE, SSE_ERR_INVALID_*, SSE_ERR_EVENT_TOO_LARGE,
   * SSE_ERR_FILTER_NOT_SHARED, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED: nothing was logged or sent.
   */
  async broadcastEvent (event: EventInput, options: BroadcastOptions = {}): Promise<Delivery> {
    const { target, local, ephemeral, ...overrides } = createTarget(options)
    const checked = this.#check({ ...event, ...overrides } as EventInput)
    if (target.filter !== undefined && this.#broker.shared && !local) throw new FilterNotShared()
    const message: OutgoingMessage = { ...checked, target, ephemeral: ephemeral || local, nonce: `${this.#nodeId}-${++this.#published}` }
    await this.open()
    if (this.#closing !== null) throw new Closed()
    if (local) return { id: null, delivered: this.#deliver({ ...message, seq: 0 }) }
    const receipt: Receipt = { delivered: 0, done: false, resolve: null }
    this.#receipts.set(message.nonce, receipt)
    try {
      const { seq } = await this.#broker.publish(message)
      if (!receipt.done) await new Promise<void>(resolve => { receipt.resolve = resolve })
      return { id: seq === null ? null : formatCursor(this.#broker.epoch, [seq]), delivered: receipt.delivered }
    } finally {
      this.#receipts.delete(message.nonce)
    }
  }

  // --- Life ---

  /** Opens the log. Called by everything that needs it; the plugin calls it at boot. */
  open (): Promise<void> {
    return (this.#opening ??= this.#open())
  }

  async #open (): Promise<void> {
    const sink: Sink = {
      deliver: batch => { for (const message of batch) this.#deliver(message) },
      gap: reason => this.#loseContinuity(reason),
      state: (state, err) => {
        if (state === 'down') this.#log.error({ err }, 'The event log cannot be reached')
        else this.#log.debug({}, 'The event log is reached')
      }
    }
    await this.#broker.open(sink, this.#options.history)
    this.#position = this.#broker.position
    this.#wheel.start()
  }

  /**
   * Ends all streams: each client is told its place and when to come back. New streams are refused from now on, publishing goes on.
   * Resolves when all are gone, after `drainMs` at the latest.
   */
  drain (): Promise<void> {
    return (this.#draining ??= this.#drain())
  }

  async #drain (): Promise<void> {
    for (const connection of this.#registry.all()) connection.close('shutdown' satisfies CloseReason)
    if (this.#registry.size === 0) return
    await new Promise<void>(resolve => {
      // One whose head was never sent has no end of its own here.
      const timer = setTimeout(resolve, this.#options.drainMs + 2 * this.#wheel.tickMs)
      this.#onEmpty = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  /** Drains, then closes the log. A second call waits for the first. */
  close (): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  async #close (): Promise<void> {
    await this.drain()
    this.#wheel.stop()
    if (this.#opening !== null) await this.#broker.close()
    for (const receipt of this.#receipts.values()) receipt.resolve?.()
  }

  // --- Inside ---

  #deliver (message: Message): number {
    const { filter } = message.target
    let frame: Frame | null = null
    let delivered = 0
    const selected = this.#registry.select(message.target)
    // The application's code runs before anything is given out: a connection that it closes meanwhile names its exact place.
    const receivers = filter === undefined ? selected : selected.filter(connection => this.#passes(filter, connection))
    for (const connection of receivers) {
      frame ??= Frame.ofMessage(message, this.#broker.epoch)
      if (connection.receive(frame)) delivered++
    }
    if (message.seq > 0) this.#position = message.seq
    this.#messages++
    this.#delivered += delivered
    const receipt = this.#receipts.get(message.nonce)
    if (receipt !== undefined) {
      receipt.delivered = delivered
      receipt.done = true
      receipt.resolve?.()
    }
    return delivered
  }

  #passes (filter: NonNullable<Target['filter']>, connection: SSEConnection): boolean {
    try {
      // Only `true` is a yes: an async function returns a promise, which is no answer.
      return filter(connection) === true
    } catch (err) {
      this.#log.error({ err, clientId: connection.clientId }, 'A broadcast filter threw; the connection is left out')
      return false
    }
  }

  #loseContinuity (reason: GapReason): void {
    this.#position = this.#broker.position
    for (const connection of this.#registry.all()) connection.fallOut(reason)
  }

  /** The event as it will be encoded, or the error that says why not. */
  #check (event: EventInput): Pick<OutgoingMessage, 'event' | 'data' | 'priority' | 'retry' | 'key'> {
    const { event: name = 'message', data, priority = EventPriority.NORMAL, retry, key } = event
    if ('id' in event) throw new InvalidId('belongs to the log here; own ids are for reply.sse(source)')
    assertEventName(name)
    assertPriority(priority)
    if (retry !== undefined) assertRetry(retry)
    if (key !== undefined && (typeof key !== 'string' || key.length === 0 || key.length > MAX_KEY_LENGTH)) throw new InvalidId(`key must be a string of 1 to ${MAX_KEY_LENGTH} characters`)
    const complete = name === 'notification' && typeof data === 'object' && data !== null ? { level: 'info' satisfies NotificationLevel, ...data } : data
    if (this.#options.events === undefined) checkBuiltIn(name, complete)
    else this.#options.events.check(name, complete)
    const text = serialize(complete)
    const bytes = Buffer.byteLength(text)
    if (bytes > this.#options.maxEventBytes) throw new EventTooLarge(bytes, this.#options.maxEventBytes)
    return { event: name, data: text, priority, ...(retry !== undefined && { retry }), ...(key !== undefined && { key }) }
  }

  #known (clientId: string): SSEConnection {
    const connection = this.#registry.client(clientId)
    if (connection === undefined || !connection.managed) throw new UnknownConnection(JSON.stringify(clientId))
    return connection
  }

  #assertOpen (): void {
    if (this.#draining !== null || this.#closing !== null) throw new Closed()
  }

  #assertRoom (userId: string | null, ip: string): void {
    const { maxConnections, maxConnectionsPerUser, maxConnectionsPerIp } = this.#options
    if (maxConnections > 0 && this.#registry.size >= maxConnections) throw new TooManyConnections()
    if (maxConnectionsPerUser > 0 && userId !== null && this.#registry.countOfUser(userId) >= maxConnectionsPerUser) throw new TooManyUserConnections()
    if (maxConnectionsPerIp > 0 && this.#registry.countOfIp(ip) >= maxConnectionsPerIp) throw new TooManyIpConnections()
  }

  #createHost (keepAliveIntervalMs: number): ConnectionHost {
    const manager = this
    const { outboxBytes, stallTimeoutMs, maxConnectionAgeMs, maxReplayEvents, drainMs } = this.#options
    return {
      outboxBytes,
      budget: new Budget(this.#options.maxQueuedBytes),
      keepAliveIntervalMs,
      stallTimeoutMs,
      maxConnectionAgeMs,
      maxReplayEvents,
      drainMs,
      get epoch () { return manager.#broker.epoch },
      get position () { return manager.#position },
      get rootBatch (): Batch { return manager.#flusher.root },
      now: () => performance.now(),
      mark: connection => this.#flusher.mark(connection),
      schedule: (connection, dueAt) => this.#wheel.schedule(connection, dueAt),
      wantsPage: connection => this.#catchUp.want(connection),
      frameOf: (connection, event) => {
        const { event: name, data, retry, priority, key } = this.#check(event)
        return Frame.ofMessage({ event: name, data, priority, ...(retry !== undefined && { retry }), ...(key !== undefined && { key }), target: { clientIds: [connection.clientId] }, ephemeral: true, nonce: '', seq: 0 }, this.#broker.epoch)
      },
      isTarget: (connection, target) => isTargeted(connection, target) && (target.filter === undefined || this.#passes(target.filter, connection)),
      keepAlive: () => (this.#keepAlive ??= new Chunk(encodeComment('keep-alive'))),
      keepPlace: () => {
        const position = this.#position
        if (this.#keepPlace?.position !== position) this.#keepPlace = { position, chunk: new Chunk(encodeCursor(formatCursor(this.#broker.epoch, [position]))) }
        return this.#keepPlace.chunk
      },
      addSubscription: (clientId, subscription) => this.addSubscription(clientId, subscription),
      removeSubscription: (clientId, subscription) => this.removeSubscription(clientId, subscription),
      ended: (connection, reason) => {
        this.#wheel.cancel(connection)
        this.#registry.remove(connection)
        this.#dropped += connection.stats().droppedEvents
        this.#closed[reason] = (this.#closed[reason] ?? 0) + 1
        if (this.#registry.size === 0) this.#onEmpty?.()
      }
    }
  }
}

/** `{ event: 'data' }` for `broadcastEvent` and `sendEvent`. */
export function createDataEvent<R extends ResourceName> (resource: R, data: ResourcePayload<R>): EventInput {
  return { event: 'data', data: { resource, data } } as EventInput
}

/** `{ event: 'notification' }` with level `info` and priority HIGH, for `broadcastEvent` and `sendEvent`. */
export function createNotificationEvent (notification: NotificationInput): EventInput {
  return { event: 'notification', data: { ...notification, level: notification.level ?? 'info' }, priority: EventPriority.HIGH } as EventInput
}

function assertReason (reason: string): void {
  if (!REASON.test(reason)) throw new InvalidCloseReason(JSON.stringify(reason))
}

/** The header wins; a browser cannot send it on a first connect, so a first cursor comes in the query (FACTS 1.9). */
function lastEventIdOf (request: HttpRequest): string | null {
  const header = request.headers['last-event-id']
  const query = queryOf(request)
  const value = (Array.isArray(header) ? header[0] : header) ?? query['lastEventId'] ?? query['last_event_id'] ?? ''
  // An empty one is what a client sends that has been told no place.
  return value === '' ? null : value
}

/** Without a logger, what the application should know becomes a process warning. */
const warnings: Log = {
  error: (details, message) => process.emitWarning(message, { type: 'SSEManager', detail: String((details as { err?: unknown }).err ?? '') }),
  warn: (details, message) => process.emitWarning(message, { type: 'SSEManager', detail: String((details as { err?: unknown }).err ?? '') }),
  debug: () => {}
}

export { CLOSE_REASONS }
