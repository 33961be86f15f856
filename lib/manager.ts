import type { Writable } from 'node:stream'
import { assertNames, CREATE_OPTIONS, type CreateConnection } from './access/connect-options.js'
import { assertCloseReason } from './connections/close-reason.js'
import { type ClusterStats } from './cluster/cluster.js'
import { type Presence } from './cluster/commands.js'
import { resolveQuery, type ConnectionPage, type ConnectionQuery } from './cluster/connection-page.js'
import { findConnections } from './cluster/questions.js'
import type { SSEConnection } from './connections/connection.js'
import type { ConnectionSnapshot } from './connections/snapshot-options.js'
import { HeadAlreadySent, InvalidOption, NoAnswer } from './errors.js'
import { streamHeaders } from './wire/headers.js'
import type { Health } from './log/health.js'
import { safeLog, warnings, type Log } from './util/logger.js'
import { resolveManagerOptions } from './options.js'
import type { SSEOptions } from '../types/options.js'
import { sendRefusal } from './access/refusal.js'
import { Node } from './node.js'
import type { Outcome } from './cluster/scatter-gather.js'
import { type ManagerStats } from './connections/statistics.js'
import type { TicketGrant } from './access/tickets.js'
import type { AuthHandler } from './access/authentication.js'
import type { AnyCatalogue, RegisteredCatalogue } from './events/event-input.js'
import { assertId, type BroadcastOptions } from './events/target.js'
import type { HttpRequest } from './wire/http.js'
import { assertSubscription } from './events/topic.js'
import { RunCalls } from './runs/run-calls.js'
import { known } from './subscriptions/authorization.js'

/** Options of `SSEManager`: those of the plugin. Functions receive the requests of `createConnection()`. */
export interface ManagerOptions extends Omit<SSEOptions, 'authHandler' | 'extractAuthData'> {
  /** Function `(authData, request)` that returns, or resolves with, a user id, `{ userId, expiresAt?, claims? }`, or `null` for an anonymous client. */
  authHandler?: AuthHandler<HttpRequest>
  /** Function `(request)` that returns properties to add to `authData`. */
  extractAuthData?: ((request: HttpRequest) => Record<string, unknown>) | undefined
}

/**
 * Manages the connections of one node, and publishes events to the connections of all nodes. The plugin adds it to Fastify as `fastify.sse`. Methods that act
 * on all nodes also reject with SSE_ERR_TOO_MANY_COMMANDS and SSE_ERR_COMMAND_FAILED.
 * @example const sse = new SSEManager({ authHandler: ({ token }) => userOf(token) }) // without Fastify
 */
export class SSEManager<C extends AnyCatalogue = RegisteredCatalogue> extends RunCalls<BroadcastOptions, C> {
  /** @internal */
  readonly node: Node

  /**
   * @param options see `SSEOptions`, except those that only the plugin has: `path`, `clientSubscriptions`, `snapshot`, `decorators`, `authStrategies`, `authRelation`
   * @param logger receives the log lines. Default: errors and warnings become process warnings. Exceptions of the logger are ignored.
   * @throws SSE_ERR_INVALID_OPTION
   */
  constructor (options: ManagerOptions = {}, logger: Log = warnings) {
    super()
    this.node = new Node(resolveManagerOptions(options), safeLog(logger))
  }

  // --- Connections ---

  /**
   * Opens a managed stream on an HTTP response, without Fastify. Resolves when the headers are sent. If it rejects, nothing was sent: call `refuse()`.
   * @throws SSE_ERR_UNAUTHENTICATED, SSE_ERR_AUTHENTICATION_FAILED, SSE_ERR_ORIGIN_FORBIDDEN, SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_NOT_ACCEPTABLE,
   * SSE_ERR_TOO_MANY_*, SSE_ERR_INVALID_*, SSE_ERR_HEAD_ALREADY_SENT, SSE_ERR_CLIENT_GONE, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   * @example sse.createConnection({ request, response, subscriptions: ['news'] }).catch(error => sse.refuse({ request, response }, error))
   */
  createConnection (options: CreateConnection<ConnectionSnapshot>): Promise<SSEConnection<C>>
  /** The same with a snapshot that clients share, or with one of which the type does not say whether they do. */
  createConnection (options: CreateConnection): Promise<SSEConnection<C>>
  async createConnection (options: CreateConnection): Promise<SSEConnection<C>> {
    assertNames(options, CREATE_OPTIONS, 'createConnection()')
    // A user that was not found must not become an anonymous connection.
    if ('user' in options && options.user === undefined) throw new InvalidOption('user', 'of createConnection() is undefined: give it a user, or null for an anonymous connection, or omit it to call authHandler')
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
   * Answers a request that `createConnection()` has rejected, as the option `refusals` says: with status and JSON, or with a short stream with a
   * reconnection time. Does nothing if the headers are already sent or the client has disconnected.
   */
  refuse ({ request, response }: Pick<CreateConnection, 'request' | 'response'>, error: unknown): void {
    sendRefusal(error, request, response, this.node.options)
  }

  /**
   * Returns a ticket that opens one stream. The client sends it as `?ticket=` within `ttlMs`, to any node with the same log and `ticketSecret`.
   * @throws SSE_ERR_TICKET_NOT_ISSUED, SSE_ERR_INVALID_SUBSCRIPTION
   * @example app.post('/ticket', async request => ({ ticket: app.sse.issueTicket({ userId: userOf(request) }) }))
   */
  issueTicket (grant: TicketGrant): string {
    return this.node.tickets.issue(grant)
  }

  /** Returns the connection of this node with a client id; undefined if there is none. @throws SSE_ERR_INVALID_TARGET when the id is not a string */
  getConnection (clientId: string): SSEConnection<C> | undefined {
    assertId(clientId, 'clientId')
    return this.node.registry.client(clientId)
  }

  /** Returns the connections of a user on this node. @throws SSE_ERR_INVALID_TARGET when the id is not a string */
  getConnectionsByUser (userId: string): SSEConnection<C>[] {
    assertId(userId, 'userId')
    return this.node.registry.user(userId)
  }

  /** Returns the connections of this node that hold exactly this topic or pattern. @throws SSE_ERR_INVALID_SUBSCRIPTION */
  getConnectionsBySubscription (subscription: string): SSEConnection<C>[] {
    assertSubscription(subscription)
    return this.node.registry.subscription(subscription)
  }

  /** Returns an iterator over all connections of this node. */
  connections (): IterableIterator<SSEConnection<C>> {
    return this.node.registry.all()
  }

  /** Number of connections of this node. */
  get connectionCount (): number {
    return this.node.registry.size
  }

  /** Returns the current counts and sums of this node. The call iterates over all connections. */
  stats (): ManagerStats {
    return this.node.statistics.read()
  }

  /**
   * Adds a topic or pattern to a connection on any node. The connection receives events published from now on, with the option `snapshot` after the state
   * of the topic. Does nothing if the connection holds it already. `authorizeSubscription` is called on the node of the connection.
   * @throws SSE_ERR_UNKNOWN_CONNECTION, SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_AUTHENTICATION_FAILED,
   * SSE_ERR_TOO_MANY_SUBSCRIPTIONS, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED; SSE_ERR_NO_ANSWER: a node has not answered, and may add it later
   */
  async addSubscription (clientId: string, subscription: string): Promise<void> {
    assertId(clientId, 'clientId')
    assertSubscription(subscription)
    this.#owned(clientId, await this.node.cluster.ask('addSubscription', clientId, subscription))
  }

  /**
   * Removes a topic or pattern from a connection on any node. Queued events that the connection no longer receives are not sent, except an event that is
   * being written. Resolves with false if the connection did not hold it.
   * @throws SSE_ERR_UNKNOWN_CONNECTION, SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED, SSE_ERR_NO_ANSWER
   */
  async removeSubscription (clientId: string, subscription: string): Promise<boolean> {
    assertId(clientId, 'clientId')
    assertSubscription(subscription)
    return this.#owned(clientId, await this.node.cluster.ask('removeSubscription', clientId, subscription))
  }

  /**
   * Revokes exactly this topic or pattern from all connections of a user on all nodes; a pattern that covers it remains. Clients receive `sse:unsubscribed`,
   * and no queued events of it. First make `authorizeSubscription` reject the subscription. Resolves with the number of connections that held it.
   * @param reason 1 to 64 characters of `a-z`, `0-9` and `-`, sent to the client. Default `revoked`.
   * @throws SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_INVALID_CLOSE_REASON, SSE_ERR_CLOSED; SSE_ERR_BROKER_UNAVAILABLE: only this node has
   * revoked it; SSE_ERR_NO_ANSWER, with the `count` so far: a silent node revokes it before it delivers any later event
   * @example await app.sse.revokeSubscription('ada', 'order:7')
   */
  async revokeSubscription (userId: string, subscription: string, reason: string = 'revoked'): Promise<number> {
    assertId(userId, 'userId')
    assertSubscription(subscription)
    assertCloseReason(reason)
    return this.#counted(await this.node.cluster.ask('revokeSubscription', userId, subscription, reason))
  }

  /**
   * Authorizes all subscriptions of a user again on all nodes, after the user's rights have changed. Subscriptions that `authorizeSubscription` rejects are
   * revoked. If it throws, the subscription is revoked too, and the error is logged. `authorizeTopic` checks queued events again. Events published meanwhile
   * wait for the results. Resolves with the number of revoked subscriptions.
   * @throws SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_CLOSE_REASON, SSE_ERR_CLOSED; SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_NO_ANSWER: as `revokeSubscription()`
   */
  async reauthorize (userId: string, reason: string = 'revoked'): Promise<number> {
    assertId(userId, 'userId')
    assertCloseReason(reason)
    return this.#counted(await this.node.cluster.ask('reauthorize', userId, reason))
  }

  /**
   * Closes one connection on any node. The client receives `sse:close` with the reason. Resolves with false if no node has the connection.
   * @param reason 1 to 64 characters of `a-z`, `0-9` and `-`, sent to the client. Default `closed`.
   * @throws SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_CLOSE_REASON, SSE_ERR_CLOSED; SSE_ERR_NO_ANSWER: a node has not answered, and closes the connection later
   * if it has it; SSE_ERR_BROKER_UNAVAILABLE: this node does not have the connection, and other nodes cannot be reached
   */
  async closeConnection (clientId: string, reason: string = 'closed'): Promise<boolean> {
    assertId(clientId, 'clientId')
    assertCloseReason(reason)
    const { value, complete } = await this.node.cluster.ask('closeConnection', clientId, reason)
    return this.#counted({ value: value === null ? 0 : 1, complete }) > 0
  }

  /**
   * Closes all connections of a user on all nodes, and rejects (401) requests of the user that are being authenticated. First make `authHandler` reject the
   * user. Tickets remain valid. An unreachable node later closes its connections too, including those opened before it reads the command. Resolves with the
   * number of closed connections.
   * @throws SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_CLOSE_REASON, SSE_ERR_CLOSED; SSE_ERR_BROKER_UNAVAILABLE: only this node has closed its connections;
   * SSE_ERR_NO_ANSWER, with the `count` so far: a silent node closes its connections before it delivers any later event
   * @example await app.sse.disconnectUser('ada', 'account-deleted')
   */
  async disconnectUser (userId: string, reason: string = 'disconnected'): Promise<number> {
    assertId(userId, 'userId')
    assertCloseReason(reason)
    return this.#counted(await this.node.cluster.ask('disconnectUser', userId, reason))
  }

  /** Random id of this node, new at each start. */
  get nodeId (): string {
    return this.node.id
  }

  /**
   * Returns the running nodes and their load. The values of other nodes are at most 1.2 × `cluster.heartbeatIntervalMs` old. A node that shuts down is removed at
   * once, a node that crashes within five intervals.
   */
  clusterStats (): ClusterStats {
    return this.node.cluster.stats()
  }

  /**
   * Resolves with the users that hold exactly this topic or pattern. Every call asks all nodes. If a node does not answer within `cluster.answerTimeoutMs`,
   * `complete` is false. Users that may reconnect without a new `sse:join` are included: see `presenceEvents.lingerMs`.
   * @throws SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   * @example const { users, complete } = await app.sse.presence('room:lobby')
   */
  async presence (subscription: string): Promise<Presence> {
    assertSubscription(subscription)
    return await this.node.cluster.presence(subscription)
  }

  /**
   * Resolves with a page of the connections of all nodes, the newest first. Every call asks all nodes, and each looks at all its connections, or only at those of
   * `clientId`, `userId` or `subscription`. If a node does not answer within `cluster.answerTimeoutMs`, or cannot be reached, `complete` is false. A page can be
   * shorter than `limit`: a node answers with at most 256 KB. Pages do not overlap, and connections that are opened meanwhile are on none of them.
   * @throws SSE_ERR_INVALID_OPTION, SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_CLOSED
   * @example
   * let after: string | null = null
   * do {
   *   const page = await app.sse.listConnections({ subscription: 'orders:7', after })
   *   for (const { userId, address, lagging } of page.connections) console.log(userId, address, lagging)
   *   after = page.after
   * } while (after !== null)
   */
  async listConnections (query: ConnectionQuery = {}): Promise<ConnectionPage> {
    return await findConnections(this.node.cluster, this.node.connectionList, resolveQuery(query))
  }

  /**
   * Returns the cursor of now. For a page that is rendered on the server: call it, load the state, and let the page open its stream with `?lastEventId=`.
   * @throws SSE_ERR_BROKER_UNAVAILABLE before `open()`, which the plugin calls at boot: the epoch of the log is not known yet; SSE_ERR_CLOSED
   */
  position (): string {
    return this.node.eventLog.cursor()
  }

  // --- Lifecycle ---

  /** Returns whether events can be logged, and the reason if not. Without a shared log, the status is `up` from `open()` to `close()`. */
  health (): Health {
    return this.node.eventLog.health
  }

  /**
   * Opens the event log. The plugin calls it at boot. Without the plugin, the first method that needs the log calls it.
   * @throws SSE_ERR_CLOSED after `close()`; SSE_ERR_BROKER_UNAVAILABLE when the log cannot be reached
   */
  open (): Promise<void> {
    return this.node.eventLog.open()
  }

  /**
   * Closes all connections and rejects new ones. Publishing remains possible. Clients receive their cursor and a reconnection time. Resolves when all
   * connections are closed, after `drainMs` at the latest.
   */
  drain (): Promise<void> {
    return this.node.drain()
  }

  /** Drains, then closes the event log. A second call returns the promise of the first. */
  close (): Promise<void> {
    return this.node.close()
  }

  /** Returns the result of the node that has the connection. @throws SSE_ERR_UNKNOWN_CONNECTION, SSE_ERR_NO_ANSWER */
  #owned<R> (clientId: string, { value, complete }: Outcome<R>): R {
    if (value === null && !complete) throw new NoAnswer(this.node.options.cluster.answerTimeoutMs)
    return known(clientId, value)
  }

  /** Returns the combined result of all nodes. @throws SSE_ERR_NO_ANSWER, with `count`, when a node has not answered */
  #counted ({ value, complete }: Pick<Outcome<number>, 'value' | 'complete'>): number {
    if (!complete) throw Object.assign(new NoAnswer(this.node.options.cluster.answerTimeoutMs), { count: value! })
    return value!
  }
}
