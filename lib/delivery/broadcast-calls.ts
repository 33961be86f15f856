import type { AnyCatalogue, EventInput, NotificationInput, RegisteredCatalogue, ResourceName, ResourcePayload } from '../events/event-input.js'
import { createDataEvent, createNotificationEvent } from '../events/message.js'
import type { BroadcastOptions } from '../events/target.js'
import type { Delivery } from './publisher.js'

/** The calls of a manager, and of a publisher, that publish events. */
export abstract class BroadcastCalls<O extends BroadcastOptions = BroadcastOptions, C extends AnyCatalogue = RegisteredCatalogue> {
  /** @internal */
  abstract readonly node: { readonly publisher: { publish (event: EventInput, options: BroadcastOptions): Promise<Delivery> } }

  /**
   * Publishes `{"resource":…,"data":…}` as the event `data`. For errors, see `broadcastEvent()`.
   * @example await app.sse.broadcastData('orders', order, { subscriptionIds: [`order:${order.id}`] })
   */
  broadcastData<R extends ResourceName<C>> (resource: R, data: ResourcePayload<R, C>, options: O = {} as O): Promise<Delivery> {
    return this.broadcastEvent(createDataEvent(resource as never, data as never) as EventInput<C>, options)
  }

  /** Publishes a notification. Default priority: HIGH. For errors, see `broadcastEvent()`. */
  broadcastNotification (notification: NotificationInput, options: O = {} as O): Promise<Delivery> {
    return this.broadcastEvent(createNotificationEvent(notification) as EventInput<C>, options)
  }

  /** Publishes an event to the connections of these users. For errors, see `broadcastEvent()`. */
  broadcastToUsers (event: EventInput<C>, userIds: readonly string[], options: Omit<O, 'userIds'> = {} as O): Promise<Delivery> {
    return this.broadcastEvent(event, { ...options, userIds } as BroadcastOptions as O)
  }

  /** Publishes an event to the connections that hold one of these topics, or a pattern that covers one. For errors, see `broadcastEvent()`. */
  broadcastToSubscriptions (event: EventInput<C>, subscriptionIds: readonly string[], options: Omit<O, 'subscriptionIds'> = {} as O): Promise<Delivery> {
    return this.broadcastEvent(event, { ...options, subscriptionIds } as BroadcastOptions as O)
  }

  /**
   * Validates, logs and delivers an event. All connections that match the options receive it; without a target, every connection does. Resolves when this node
   * has delivered it; of a publisher, when it is logged. A slow or reconnecting client reads missed events from the log. A rejected event is neither logged nor sent.
   * @throws SSE_ERR_UNKNOWN_*, SSE_ERR_INVALID_*, SSE_ERR_EVENT_TOO_LARGE, SSE_ERR_FILTER_NOT_SHARED, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   * @example await app.sse.broadcastEvent({ event: 'paid', data: { total: 12 } }, { userIds: ['ada'] })
   */
  broadcastEvent (event: EventInput<C>, options: O = {} as O): Promise<Delivery> {
    return this.node.publisher.publish(event as EventInput, options)
  }
}
