import type { ServerResponse } from 'node:http'
import type { Writable } from 'node:stream'
import { assertNames, CREATE_OPTIONS, type CreateConnection } from './access/connect-options.js'
import { assertCloseReason } from './connections/close-reason.js'
import { type ClusterStats } from './cluster/cluster.js'
import { type Presence } from './cluster/commands.js'
import type { SSEConnection } from './connections/connection.js'
import { HeadAlreadySent, InvalidOption, NoAnswer } from './errors.js'
import { streamHeaders } from './wire/headers.js'
import type { Health } from './log/health.js'
import { safeLog, warnings, type Log } from './util/logger.js'
import { createDataEvent, createNotificationEvent } from './events/message.js'
import { resolveManagerOptions } from './options.js'
import type { SSEOptions } from '../types/options.js'
import { isGone } from './wire/http.js'
import { type Delivery } from './delivery/publisher.js'
import { refusalOf } from './access/refusal.js'
import { Node } from './node.js'
import type { Outcome } from './cluster/scatter-gather.js'
import { type ManagerStats } from './connections/statistics.js'
import type { TicketGrant } from './access/tickets.js'
import { assertId, type BroadcastOptions } from './events/target.js'
import { assertSubscription } from './events/topic.js'
import { known } from './subscriptions/authorization.js'
import type { NotificationInput, EventInput, ResourcePayload, ResourceName } from './events/event-input.js'

/**
 * Who is connected to this node, and every way to reach them. Decorates Fastify as `fastify.sse`; without Fastify make
 * one with `new SSEManager(options)`.
 */
export class SSEManager {
  /** @internal */
  readonly node: Node

  /**
   * @param options see `SSEOptions`, without those that only the plugin reads: `path`, `clientSubscriptions`, `decorators`, `authStrategies` and `authRelation`.
   * @param logger where the manager logs; default: errors and warnings become process warnings. A logger that throws stops nothing.
   * @throws SSE_ERR_INVALID_OPTION
   */
  constructor (options: SSEOptions = {}, logger: Log = warnings) {
    this.node = new Node(resolveManagerOptions(options), safeLog(logger))
  }

  // --- Connections ---

  /**
   * Opens a managed stream on a plain HTTP response: the way in without Fastify. Resolves once the head is sent.
   * @throws SSE_ERR_UNAUTHENTICATED, SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_ORIGIN_FORBIDDEN, SSE_ERR_NOT_ACCEPTABLE,
   * SSE_ERR_TOO_MANY_*, SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_INVALID_OPTION, SSE_ERR_CLIENT_GONE, SSE_ERR_CLOSED: the response is untouched; `refuse` answers it.
   */
  async createConnection (options: CreateConnection): Promise<SSEConnection> {
    assertNames(options, CREATE_OPTIONS, 'createConnection()')
    // A user that was not found must not become an anonymous connection.
    if ('user' in options && options.user === undefined) throw new InvalidOption('user', 'of createConnection() is undefined: give it a user, or null for an anonymous connection, or leave it out and authHandler is asked')
    const { request, response } = options
    if (response.headersSent) throw new HeadAlreadySent()
    const connection = await this.node.admission.admit(options)
    response.removeHeader('content-length')
    try {
      connection.open(response as unknown as Writable, { headers: streamHeaders(request) })
    } finally {
      connection.handOver()
    }
    return connection
  }

  /**
   * Answers a request whose `createConnection` was rejected, as the option `refusals` says: with a short stream that tells when to come back, or
   * by status and JSON. Does nothing when the response has begun, or its client has gone.
   */
  refuse ({ request, response }: Pick<CreateConnection, 'request' | 'response'>, error: unknown): void {
    if (response.headersSent || isGone(response)) return
    const { statusCode, headers, body } = refusalOf(error, request, this.node.options)
    response.statusCode = statusCode
    for (const [name, value] of Object.entries(headers)) response.setHeader(name, value)
    ;(response as ServerResponse).end(body)
  }

  /**
   * A ticket for one stream, to be shown as `?ticket=` within `ttlMs`, on any node that shares log and `ticketSecret`.
   * @throws SSE_ERR_TICKET_NOT_ISSUED, SSE_ERR_INVALID_SUBSCRIPTION
   */
  issueTicket (grant: TicketGrant): string {
    return this.node.tickets.issue(grant)
  }

  /** The open stream with this client id, on this node. @throws SSE_ERR_INVALID_TARGET when the id is no string. */
  getConnection (clientId: string): SSEConnection | undefined {
    assertId(clientId, 'clientId')
    return this.node.registry.client(clientId)
  }

  /** The open streams of a user, on this node. @throws SSE_ERR_INVALID_TARGET when the id is no string. */
  getConnectionsByUser (userId: string): SSEConnection[] {
    assertId(userId, 'userId')
    return this.node.registry.user(userId)
  }

  /** The open streams of this node that hold exactly this topic or pattern. @throws SSE_ERR_INVALID_SUBSCRIPTION */
  getConnectionsBySubscription (subscription: string): SSEConnection[] {
    assertSubscription(subscription)
    return this.node.registry.subscription(subscription)
  }

  /** All open streams of this node. */
  connections (): IterableIterator<SSEConnection> {
    return this.node.registry.all()
  }

  /** How many streams are open on this node. */
  get connectionCount (): number {
    return this.node.registry.size
  }

  /** Counts and sums of this node, as of now. Costs a look at each connection. */
  stats (): ManagerStats {
    return this.node.statistics.read()
  }

  /**
   * Adds a topic or pattern to an open stream, on whatever node; events published from now on arrive, nothing that a
   * returning client has missed. Does nothing when it is held already. The application is asked for the right on the node that has the stream.
   * @throws SSE_ERR_UNKNOWN_CONNECTION, SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_TOO_MANY_SUBSCRIPTIONS;
   * SSE_ERR_NO_ANSWER when a node that may have it is silent, and may still do it; SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED.
   */
  async addSubscription (clientId: string, subscription: string): Promise<void> {
    assertId(clientId, 'clientId')
    assertSubscription(subscription)
    this.#owned(clientId, await this.node.cluster.ask('addSubscription', clientId, subscription))
  }

  /**
   * Takes a topic or pattern from an open stream, on whatever node. Its events that still wait are not sent, unless they are
   * being written. Resolves with false when it was not held.
   * @throws SSE_ERR_UNKNOWN_CONNECTION, SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_SUBSCRIPTION; SSE_ERR_NO_ANSWER when a node that may have it is silent, and may still do it; SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED.
   */
  async removeSubscription (clientId: string, subscription: string): Promise<boolean> {
    assertId(clientId, 'clientId')
    assertSubscription(subscription)
    return this.#owned(clientId, await this.node.cluster.ask('removeSubscription', clientId, subscription))
  }

  /**
   * Takes a topic or pattern from all streams of a user, on all nodes; the user is told with `sse:unsubscribed` and keeps the
   * rest. What waits for them is looked at again: nothing that is not with the socket yet arrives. Exactly this subscription:
   * a pattern that covers it stays. See to it first that `authorizeSubscription` refuses it from now on. Resolves with the
   * number of streams that held it, once all nodes have done it.
   * @param reason told to the client: `a-z`, `0-9` and `-`, at most 64; default `revoked`.
   * @throws SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_INVALID_CLOSE_REASON, SSE_ERR_CLOSED; SSE_ERR_NO_ANSWER, with the `count` so far, when a node has not answered within
   * `cluster.answerTimeoutMs`: it does it before it delivers anything published after this call; SSE_ERR_BROKER_UNAVAILABLE when only this node could do it.
   */
  async revokeSubscription (userId: string, subscription: string, reason: string = 'revoked'): Promise<number> {
    assertId(userId, 'userId')
    assertSubscription(subscription)
    assertCloseReason(reason)
    return this.#counted(await this.node.cluster.ask('revokeSubscription', userId, subscription, reason))
  }

  /**
   * The user's rights have changed: each node asks `authorizeSubscription` again about everything the user's streams hold there,
   * takes away what it does not allow any more, as `revokeSubscription` does, and looks again, with `authorizeTopic`, at what
   * waits; what is published meanwhile waits for the answers. When it throws, the subscription is taken away and the error logged. Resolves with the number of
   * subscriptions taken away, once all nodes have done it.
   * @throws SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_CLOSE_REASON, SSE_ERR_CLOSED; SSE_ERR_NO_ANSWER, with the `count` so far, when a node has not answered within
   * `cluster.answerTimeoutMs`: it does it before it delivers anything published after this call; SSE_ERR_BROKER_UNAVAILABLE when only this node could do it.
   */
  async reauthorize (userId: string, reason: string = 'revoked'): Promise<number> {
    assertId(userId, 'userId')
    assertCloseReason(reason)
    return this.#counted(await this.node.cluster.ask('reauthorize', userId, reason))
  }

  /**
   * Ends one stream, on whatever node, with `sse:close` and the reason. Resolves with false when no node has it.
   * @param reason `a-z`, `0-9` and `-`, at most 64; default `closed`.
   * @throws SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_CLOSE_REASON, SSE_ERR_CLOSED; SSE_ERR_NO_ANSWER when a node that may have it has not answered within `cluster.answerTimeoutMs`, and ends it later; SSE_ERR_BROKER_UNAVAILABLE when this node does not have it and others cannot be asked.
   */
  async closeConnection (clientId: string, reason: string = 'closed'): Promise<boolean> {
    assertId(clientId, 'clientId')
    assertCloseReason(reason)
    const { value, complete } = await this.node.cluster.ask('closeConnection', clientId, reason)
    return this.#counted({ value: value === null ? 0 : 1, complete }) > 0
  }

  /**
   * Ends all streams of a user, on all nodes, and refuses (401) the requests of theirs that were being authenticated before and
   * have no stream yet. Tickets stay good: see to it first that the user is not recognised any more. Resolves with how many streams there
   * were, once all nodes have ended theirs. A node that was away also ends streams that were opened on it after this call and before
   * it has read the command: whether a stream is newer than a command cannot be told from the clocks of two machines.
   * @throws SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_CLOSE_REASON, SSE_ERR_CLOSED; SSE_ERR_NO_ANSWER, with the `count` so far, when a node has not answered within `cluster.answerTimeoutMs`: it
   * ends them before it delivers anything published after this call; SSE_ERR_BROKER_UNAVAILABLE when only this node could be asked: its streams have ended.
   */
  async disconnectUser (userId: string, reason: string = 'disconnected'): Promise<number> {
    assertId(userId, 'userId')
    assertCloseReason(reason)
    return this.#counted(await this.node.cluster.ask('disconnectUser', userId, reason))
  }

  // --- All nodes ---

  /** Of this node, made anew at each start. */
  get nodeId (): string {
    return this.node.id
  }

  /**
   * The nodes that live and how much each has to do. This node as of now, the others as of their last word, which is
   * `cluster.heartbeatIntervalMs` old at most. One that ends says so; one that dies is missing after three and a half intervals.
   */
  clusterStats (): ClusterStats {
    return this.node.cluster.stats()
  }

  /**
   * Who holds exactly this topic or pattern, on all nodes, as of now. Asked, not remembered: of a node that does not answer
   * within `cluster.answerTimeoutMs` nothing is known, and `complete` is false then. Who may come back unannounced, see
   * `presenceEvents.lingerMs`, is named as well.
   * @throws SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_BROKER_UNAVAILABLE; SSE_ERR_CLOSED once the manager is closed.
   */
  async presence (subscription: string): Promise<Presence> {
    assertSubscription(subscription)
    return await this.node.cluster.presence(subscription)
  }

  // --- Broadcasts ---

  /** Publishes `{"resource":…,"data":…}` as event `data`. See `broadcastEvent`. */
  broadcastData<R extends ResourceName> (resource: R, data: ResourcePayload<R>, options: BroadcastOptions = {}): Promise<Delivery> {
    return this.broadcastEvent(createDataEvent(resource, data), options)
  }

  /** Publishes a notification, with priority HIGH unless told otherwise. See `broadcastEvent`. */
  broadcastNotification (notification: NotificationInput, options: BroadcastOptions = {}): Promise<Delivery> {
    return this.broadcastEvent(createNotificationEvent(notification), options)
  }

  /** Publishes an event for these users. See `broadcastEvent`. */
  broadcastToUsers (event: EventInput, userIds: readonly string[], options: Omit<BroadcastOptions, 'userIds'> = {}): Promise<Delivery> {
    return this.broadcastEvent(event, { ...options, userIds })
  }

  /** Publishes an event for those who hold one of these topics, or a pattern that covers one. See `broadcastEvent`. */
  broadcastToSubscriptions (event: EventInput, subscriptionIds: readonly string[], options: Omit<BroadcastOptions, 'subscriptionIds'> = {}): Promise<Delivery> {
    return this.broadcastEvent(event, { ...options, subscriptionIds })
  }

  /**
   * Publishes an event: checks it, logs it, and delivers it to all whom the target names. Resolves once this node has
   * delivered it; what a slow or returning client has missed it reads from the log.
   * @throws SSE_ERR_INVALID_PAYLOAD, SSE_ERR_UNKNOWN_EVENT, SSE_ERR_UNKNOWN_RESOURCE, SSE_ERR_INVALID_*, SSE_ERR_EVENT_TOO_LARGE,
   * SSE_ERR_FILTER_NOT_SHARED, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED: nothing was logged or sent.
   */
  broadcastEvent (event: EventInput, options: BroadcastOptions = {}): Promise<Delivery> {
    return this.node.publisher.publish(event, options)
  }

  // --- Life ---

  /** Whether events can be logged, and why not; without a shared log it is `up` from opening to closing. */
  health (): Health {
    return this.node.eventLog.health
  }

  /**
   * Opens the log. Called by everything that needs it; the plugin calls it at boot.
   * @throws SSE_ERR_CLOSED after `close()`; SSE_ERR_BROKER_UNAVAILABLE when the log cannot be reached.
   */
  open (): Promise<void> {
    return this.node.eventLog.open()
  }

  /**
   * Ends all streams: each client is told its place and when to come back. New streams are refused from now on, publishing goes on.
   * Resolves when all are gone, after `drainMs` at the latest.
   */
  drain (): Promise<void> {
    return this.node.drain()
  }

  /** Drains, then closes the log. A second call waits for the first. */
  close (): Promise<void> {
    return this.node.close()
  }

  // --- Inside ---

  /** What the node that has the connection answered. */
  #owned<R> (clientId: string, { value, complete }: Outcome<R>): R {
    if (value === null && !complete) throw new NoAnswer(this.node.options.cluster.answerTimeoutMs)
    return known(clientId, value)
  }

  /** What the nodes have done together, once all have answered. */
  #counted ({ value, complete }: Outcome<number>): number {
    if (!complete) throw Object.assign(new NoAnswer(this.node.options.cluster.answerTimeoutMs), { count: value! })
    return value!
  }
}
