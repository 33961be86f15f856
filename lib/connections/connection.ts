import { Frame } from '../delivery/frame.js'
import type { EventInput, NotificationInput, ResourceName, ResourcePayload } from '../events/event-input.js'
import { composeMessage, createDataEvent, createNotificationEvent } from '../events/message.js'
import type { ClientInfo } from '../events/subscriber.js'
import type { Target } from '../events/target.js'
import { assertSubscription, assertTopic } from '../events/topic.js'
import { known } from '../subscriptions/authorization.js'
import { inNoContext } from '../util/async-context.js'
import type { HttpResponse } from '../wire/http.js'
import type { ConnectionContext } from './context.js'
import { sourceErrorFrame, unsubscribedFrame } from './control-frames.js'
import { Lifecycle, type StreamSettings } from './lifecycle.js'

/** The client of a connection and what it asked for; fixed before the stream opens. @internal */
export interface ConnectionProfile extends StreamSettings {
  readonly clientId: string
  readonly userId: string | null
  readonly claims: unknown
  readonly clientInfo: ClientInfo
  readonly lastEventId: string | null
  /** The topics and patterns it holds from the start. It is the connection's own from here on. */
  readonly held: Set<string>
}

// A Member of the registry and Timed by the wheel. `implements` would say so in the published types too, which leave out what is internal.
/**
 * One open stream. Made by `reply.sse()` or `createConnection()` only; ended once, by the `close` event of its response.
 * Sending to a connection that has ended returns `false`; it never throws and never waits.
 */
export class SSEConnection extends Lifecycle {
  /** Made for this stream; a client that comes back gets another. */
  readonly clientId: string
  /** The authenticated user id; null for an anonymous connection. */
  readonly userId: string | null
  /** What the application's `authHandler` returned beside the user. */
  readonly claims: unknown
  /** From where and since when; and what the application gave as `clientInfo`. */
  readonly clientInfo: ClientInfo
  /** What the client sent as `Last-Event-ID` (header, or `lastEventId` in the query), null on a first connect. */
  readonly lastEventId: string | null
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
    // From here on deliveries may come, head or not: the position in the log is fixed now.
    if (this.managed && this.lastEventId !== null) this.backlog.resume(this.lastEventId)
  }

  get isAuthenticated (): boolean {
    return this.userId !== null
  }

  /** The topics and patterns this connection holds. */
  get subscriptions (): ReadonlySet<string> {
    return this.held
  }

  /**
   * Whether it holds the topic, or a pattern that covers it and, with `authorizeTopic`, may hear it.
   * @throws SSE_ERR_INVALID_TOPIC
   */
  hasSubscription (topic: string): boolean {
    assertTopic(topic)
    return inNoContext(() => this.context.audience.hears(this, topic))
  }

  /**
   * Sends one event to this client only: not logged, no id, not replayed.
   * @returns false when the connection has ended, or is so slow that the event was dropped at once. One that waits may still be dropped for more urgent ones; `stats()` counts it.
   * @throws SSE_ERR_INVALID_* when the event cannot be sent to anybody, SSE_ERR_EVENT_TOO_LARGE above `maxEventBytes`.
   */
  sendEvent (event: EventInput): boolean {
    if (this.hasEnded()) return false
    const { options, eventLog } = this.context
    const message = composeMessage(event, { ephemeral: true }, options)
    return this.receive(Frame.ofMessage({ ...message, target: { clientIds: [this.clientId] } }, eventLog.epoch))
  }

  /** Sends `{"resource":…,"data":…}` as event `data` to this client only. See `sendEvent`. */
  sendData<R extends ResourceName> (resource: R, data: ResourcePayload<R>): boolean {
    return this.sendEvent(createDataEvent(resource, data))
  }

  /** Sends a notification to this client only, with priority HIGH. See `sendEvent`. */
  sendNotification (notification: NotificationInput): boolean {
    return this.sendEvent(createNotificationEvent(notification))
  }

  /** @see SSEManager.addSubscription */
  async addSubscription (subscription: string): Promise<void> {
    assertSubscription(subscription)
    known(this.clientId, await this.context.subscriptions.add(this.clientId, subscription))
  }

  /** @see SSEManager.removeSubscription */
  async removeSubscription (subscription: string): Promise<boolean> {
    assertSubscription(subscription)
    return known(this.clientId, this.context.subscriptions.remove(this.clientId, subscription))
  }

  // --- Inside ---

  /** @internal */
  protected override isTarget (target: Target): boolean {
    return this.context.audience.includes(this, target)
  }

  /** @internal */
  tellUnsubscribed (subscriptionId: string, reason: string): void {
    this.receive(unsubscribedFrame(subscriptionId, reason))
  }

  /** The source has failed: the client is told no more than that, and the stream ends. @internal */
  fail (): void {
    if (this.hasEnded()) return
    this.receive(sourceErrorFrame())
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
