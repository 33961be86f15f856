import { Frame } from '../delivery/frame.js'
import { Chunk } from '../wire/chunk.js'
import type { AnyCatalogue, Claims, EventInput, NotificationInput, RegisteredCatalogue, ResourceName, ResourcePayload } from '../events/event-input.js'
import { composeMessage, createDataEvent, createNotificationEvent } from '../events/message.js'
import type { ClientInfo } from '../events/subscriber.js'
import type { Interest } from '../log/log-index.js'
import type { Target } from '../events/target.js'
import { assertSubscription, assertTopic } from '../events/topic.js'
import { known } from '../subscriptions/authorization.js'
import { inNoContext } from '../util/async-context.js'
import type { HttpResponse } from '../wire/http.js'
import type { ConnectionContext } from './context.js'
import { sourceErrorFrame, unsubscribedFrame } from './control-frames.js'
import { Lifecycle, type StreamSettings } from './lifecycle.js'
import { PUMP_BYTES } from './sender.js'
import { Snapshot, type SnapshotPlan } from './snapshot.js'

/** The client of a connection and its request, fixed before the stream opens. @internal */
export interface ConnectionProfile extends StreamSettings {
  readonly clientId: string
  readonly userId: string | null
  readonly claims: Claims | undefined
  readonly clientInfo: ClientInfo
  readonly lastEventId: string | null
  /** The initial topics and patterns. The connection keeps the set itself, not a copy. */
  readonly held: Set<string>
  /** Null without the option `snapshot`. */
  readonly snapshot: SnapshotPlan | null
}

// It conforms to `Member` and `Timed` without `implements`: internal members are missing in the published types, which would not compile.
/**
 * An open stream, created by `reply.sse()` or `createConnection()`. It ends once, with the `close` event of its response. After that,
 * the methods that send return false; they neither throw nor wait.
 * @example
 * ```ts
 * app.get('/sse', { sse: true }, async (request, reply) => {
 *   const connection = await reply.sse({ subscriptions: ['news'] })
 *   connection.sendData('welcome', { userId: connection.userId })
 *   connection.signal.addEventListener('abort', () => request.log.info(`Stream ended: ${connection.closeReason}`))
 * })
 * ```
 */
export class SSEConnection<C extends AnyCatalogue = RegisteredCatalogue> extends Lifecycle {
  /** The id of the connection. A client that reconnects gets a new id. */
  override readonly clientId: string
  /** The authenticated user id; null for an anonymous connection. */
  override readonly userId: string | null
  /** The claims that `authHandler` returned with the user; undefined if there are none. */
  readonly claims: Claims | undefined
  /** Address, user agent and time of the connection, and the properties of the option `clientInfo`. */
  readonly clientInfo: ClientInfo
  /**
   * The cursor of the client: the option `lastEventId`, otherwise the header `Last-Event-ID` or `lastEventId` in the query. Null for a
   * first connect.
   */
  override readonly lastEventId: string | null
  /** @internal */ readonly held: Set<string>
  /** @internal */ index = -1

  /** @internal */
  constructor (context: ConnectionContext, response: HttpResponse, profile: ConnectionProfile) {
    super(context, response, profile)
    this.clientId = profile.clientId
    this.userId = profile.userId
    this.claims = profile.claims
    this.clientInfo = profile.clientInfo
    this.lastEventId = profile.lastEventId
    this.held = profile.held
    // Deliveries can arrive from now on, before the headers are sent. So the position in the log is fixed here.
    // A HEAD request has no stream that could have a gap.
    if (this.managed && !profile.headOnly) this.backlog.begin(this.lastEventId, profile.snapshot === null ? null : new Snapshot(context, this, this.backlog, profile.snapshot, this.lastEventId), this)
  }

  /** Whether the connection has an authenticated user. */
  get isAuthenticated (): boolean {
    return this.userId !== null
  }

  /** The topics and patterns that the connection holds. */
  get subscriptions (): ReadonlySet<string> {
    return this.held
  }

  /**
   * Returns whether the connection receives events of this topic: it holds the topic, or it holds a pattern that covers the topic and
   * `authorizeTopic` allows it.
   * @throws SSE_ERR_INVALID_TOPIC
   */
  hasSubscription (topic: string): boolean {
    assertTopic(topic)
    return inNoContext(() => this.context.audience.hears(this, topic))
  }

  /**
   * Sends an event to this client only. The event is not logged, has no id, and is not replayed.
   * @returns false if the connection has ended, or if the event was dropped because the client is too slow. A queued event can still be
   * dropped later; `stats()` counts it.
   * @throws SSE_ERR_INVALID_EVENT, SSE_ERR_INVALID_EVENT_NAME, SSE_ERR_INVALID_ID, SSE_ERR_INVALID_KEY, SSE_ERR_INVALID_RETRY,
   * SSE_ERR_INVALID_DATA, SSE_ERR_INVALID_PRIORITY, SSE_ERR_INVALID_PAYLOAD, SSE_ERR_UNKNOWN_EVENT, SSE_ERR_UNKNOWN_RESOURCE,
   * SSE_ERR_EVENT_TOO_LARGE
   * @example
   * ```ts
   * const connection = await reply.sse()
   * connection.sendEvent({ event: 'progress', data: { percent: 40 }, key: 'progress' })
   * ```
   */
  sendEvent (event: EventInput<C>): boolean {
    if (this.hasEnded()) return false
    const { options, eventLog } = this.context
    const message = composeMessage(event as EventInput, { ephemeral: true }, options)
    return this.receive(Frame.ofMessage({ ...message, target: { clientIds: [this.clientId] } }, eventLog.epoch))
  }

  /** Sends `{"resource":…,"data":…}` as the event `data` to this client only. Results and errors are those of `sendEvent`. */
  sendData<R extends ResourceName<C>> (resource: R, data: ResourcePayload<R, C>): boolean {
    return this.sendEvent(createDataEvent(resource as never, data as never) as EventInput<C>)
  }

  /** Sends a notification with priority HIGH to this client only. Results and errors are those of `sendEvent`. */
  sendNotification (notification: NotificationInput): boolean {
    return this.sendEvent(createNotificationEvent(notification) as EventInput<C>)
  }

  /**
   * Adds a topic or pattern to this connection. Events that are published from now on are received. With the option `snapshot`, its
   * state is loaded first. Has no effect if the connection holds it already.
   * @throws SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_SUBSCRIPTION_FORBIDDEN, SSE_ERR_AUTHENTICATION_FAILED,
   * SSE_ERR_TOO_MANY_SUBSCRIPTIONS; SSE_ERR_UNKNOWN_CONNECTION if the connection has ended or streams a source
   * @see SSEManager.addSubscription
   */
  async addSubscription (subscription: string): Promise<void> {
    assertSubscription(subscription)
    known(this.clientId, await this.context.subscriptions.add(this.clientId, subscription))
  }

  /**
   * Removes a topic or pattern from this connection. Queued events that it no longer receives are not sent. Resolves with false if the
   * connection did not hold it.
   * @throws SSE_ERR_INVALID_SUBSCRIPTION; SSE_ERR_UNKNOWN_CONNECTION if the connection has ended or streams a source
   * @see SSEManager.removeSubscription
   */
  async removeSubscription (subscription: string): Promise<boolean> {
    assertSubscription(subscription)
    return known(this.clientId, this.context.subscriptions.remove(this.clientId, subscription))
  }

  // --- Internal ---

  /** @internal */
  protected override get interest (): Interest {
    return this
  }

  /** @internal */
  protected override isTarget (target: Target): boolean {
    return this.context.audience.includes(this, target)
  }

  /** @internal */
  tellUnsubscribed (subscriptionId: string, reason: string): void {
    this.receive(unsubscribedFrame(subscriptionId, reason))
  }

  /**
   * Writes an event of a source at once if its client keeps up. Further events of the same turn are written together at its end: the
   * mark, which this stream has until then, makes `receive` take them. @internal
   */
  writeAtOnce (frame: Frame): boolean {
    if (this.next !== null || !this.writeTogether(new Chunk(frame.head + frame.text, frame.textBytes), 1)) return false
    this.marked()
    return true
  }

  /** Writes events of a source in one write, if its client keeps up and nothing waits. @internal */
  writeTogether (chunk: Chunk, events: number): boolean {
    if (this.blocked || this.state !== 'open' || chunk.bytes > PUMP_BYTES || !this.backlog.empty) return false
    this.write(chunk)
    this.sent += events
    return true
  }

  /** Ends the stream after its source has failed. The client does not receive the error. @internal */
  fail (): void {
    if (this.hasEnded()) return
    if (this.control) this.receive(sourceErrorFrame())
    this.close('source-error')
  }

  /** @internal */
  onWriteError (err: unknown): void {
    this.cut('closed')
    this.context.log.error({ err, clientId: this.clientId }, 'Writing to a wrapped response threw; the stream is destroyed')
  }

  /** @internal */
  protected override onEnd (reason: string): void {
    this.context.onEnd(this, reason)
  }
}
