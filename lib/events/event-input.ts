import type { Static, TSchema } from '@sinclair/typebox'
import type { Notification, NotificationLevel } from './catalogue.js'
import type { EventPriority } from './event-rules.js'

/**
 * Registers the catalogue of an application with TypeScript. After the augmentation below, event names and payloads are checked
 * at compile time. The file with the augmentation must import from the package.
 * @example
 * ```ts
 * import { Type } from '@sinclair/typebox'
 * import { defineEvents } from 'fastify-sse-manager'
 *
 * export const events = defineEvents({ events: { 'order-paid': Type.Object({ orderId: Type.String() }) } })
 *
 * declare module 'fastify-sse-manager' {
 *   interface Register { catalogue: typeof events }
 * }
 * ```
 */
export interface Register {}

type Payloads<S extends Record<string, TSchema>> = { [N in keyof S & string]: Static<S[N]> }
type Events = Register extends { catalogue: { events: infer E extends Record<string, TSchema> } } ? Payloads<E> : Record<string, unknown>
type Resources = Register extends { catalogue: { resources: infer R extends Record<string, TSchema> } } ? Payloads<R> : Record<string, unknown>

/** A resource name of the registered catalogue. Without a registered catalogue, any string. */
export type ResourceName = keyof Resources & string
/** The payload of a resource. Without a registered catalogue, `unknown`. */
export type ResourcePayload<N extends ResourceName> = Resources[N]
/** An event name of the registered catalogue, or a built-in one. Without a registered catalogue, any string. */
export type EventName = (keyof Events & string) | 'data' | 'notification'

/** The properties of an event beside its name and data. */
export interface EventOptions {
  /** Order of delivery to a client with a backlog: higher priorities first. Default NORMAL; HIGH for `createNotificationEvent`. */
  priority?: EventPriority
  /** Reconnection time that the client uses from this event on: an integer from 100 to 3,600,000 milliseconds. Absent: unchanged. */
  retry?: number
  /**
   * Conflation key, 1 to 256 characters: the event replaces older undelivered events with the same key and target. Absent: no
   * conflation.
   */
  key?: string
}

interface AnyEvent {
  /** Event name. Default `message`. */
  event?: string
  /** A string is sent as it is, everything else as JSON. */
  data: unknown
}

type CatalogueEvent = { [N in keyof Events & string]: N extends 'message' ? UnnamedEvent<N> : NamedEvent<N> }[keyof Events & string]

interface NamedEvent<N extends keyof Events> {
  /** Event name of the catalogue. */
  event: N
  /** Payload, checked by the schema of the event. */
  data: Events[N]
}

interface UnnamedEvent<N extends keyof Events> extends Partial<Pick<NamedEvent<N>, 'event'>>, Pick<NamedEvent<N>, 'data'> {}

type DataEvent = { [N in ResourceName]: ResourceEvent<N> }[ResourceName]

interface ResourceEvent<N extends ResourceName> {
  /** The built-in event of `broadcastData` and `sendData`. */
  event: 'data'
  /** The data of the event. */
  data: {
    /** Resource name. */
    resource: N
    /** Payload, checked by the schema of the resource. */
    data: Resources[N]
  }
}

interface NotificationEvent {
  /** The built-in event of `broadcastNotification` and `sendNotification`. */
  event: 'notification'
  /** The notification. */
  data: NotificationInput
}

/**
 * An event to send: `{ event, data, priority?, retry?, key? }`. An absent `event` means `message`. With a registered catalogue,
 * only its names and payloads are accepted; without one, any name and any data with a JSON form.
 */
export type EventInput = EventOptions & (Register extends { catalogue: unknown } ? CatalogueEvent | DataEvent | NotificationEvent : AnyEvent)

/** A notification to send. */
export interface NotificationInput {
  /** Title to display. */
  title: string
  /** Text to display. */
  message: string
  /** Severity. Default `info`. */
  level?: NotificationLevel
  /** Actions that the page offers with the notification. Their form is up to the application. */
  actions?: NonNullable<Notification['actions']>
}
