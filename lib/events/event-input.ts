import type { Static, TSchema } from '@sinclair/typebox'
import type { Notification, NotificationLevel } from './catalogue.js'
import type { EventPriority } from './event-rules.js'

/**
 * Registers the catalogue of an application with TypeScript, and the type of the claims of its users. After the augmentation below, event
 * names, payloads and claims are checked at compile time. The file with the augmentation must import from the package. In a program with
 * several catalogues, give the type of each to its manager instead: `SSEManager<typeof events>`.
 * @example
 * ```ts
 * import { Type } from '@sinclair/typebox'
 * import { defineEvents } from 'fastify-sse-manager'
 *
 * export const events = defineEvents({ events: { 'order-paid': Type.Object({ orderId: Type.String() }) } })
 *
 * declare module 'fastify-sse-manager' {
 *   interface Register {
 *     catalogue: typeof events
 *     claims: { role: 'admin' | 'guest' }
 *   }
 * }
 * ```
 */
export interface Register {}

/** What `defineEvents()` returns, and clients know of it. */
export interface AnyCatalogue {
  /** The schemas of the events, by event name. */
  readonly events: Record<string, TSchema>
  /** The schemas of the resources, by resource name. */
  readonly resources: Record<string, TSchema>
}

/** The catalogue of `Register`; without one, any names. */
export type RegisteredCatalogue = Register extends { catalogue: infer C extends AnyCatalogue } ? C : AnyCatalogue
/** The claims of users: the property `claims` of `Register`; without one, `unknown`. */
export type Claims = Register extends { claims: infer C } ? C : unknown

type Payloads<S extends Record<string, TSchema>> = string extends keyof S ? Record<string, unknown> : { [N in keyof S & string]: Static<S[N]> }

/** A resource name of the catalogue. Without one, any string. */
export type ResourceName<C extends AnyCatalogue = RegisteredCatalogue> = keyof Payloads<C['resources']> & string
/** The payload of a resource. Without a catalogue, `unknown`. */
export type ResourcePayload<N extends ResourceName<C>, C extends AnyCatalogue = RegisteredCatalogue> = Payloads<C['resources']>[N]
/** An event name of the catalogue, or a built-in one. Without a catalogue, any string. */
export type EventName<C extends AnyCatalogue = RegisteredCatalogue> = (keyof Payloads<C['events']> & string) | 'data' | 'notification'

/** The properties of an event beside its name and data. */
export interface EventOptions {
  /** Order of delivery to a client with a backlog: higher priorities first. Default NORMAL; HIGH for `createNotificationEvent`. */
  priority?: EventPriority | undefined
  /** Reconnection time that the client uses from this event on: an integer from 100 to 3,600,000 milliseconds. Absent: unchanged. */
  retry?: number | undefined
  /**
   * Conflation key, 1 to 256 characters: the event replaces older undelivered events with the same key and target. Absent: no
   * conflation.
   */
  key?: string | undefined
}

interface AnyEvent {
  /** Event name. Default `message`. */
  event?: string
  /** A string is sent as it is, everything else as JSON. */
  data: unknown
}

type CatalogueEvent<P> = { [N in keyof P & string]: N extends 'message' ? UnnamedEvent<N, P[N]> : NamedEvent<N, P[N]> }[keyof P & string]

interface NamedEvent<N extends string, D> {
  /** Event name of the catalogue. */
  event: N
  /** Payload, checked by the schema of the event. */
  data: D
}

interface UnnamedEvent<N extends string, D> extends Partial<Pick<NamedEvent<N, D>, 'event'>>, Pick<NamedEvent<N, D>, 'data'> {}

type DataEvent<P> = { [N in keyof P & string]: ResourceEvent<N, P[N]> }[keyof P & string]

interface ResourceEvent<N extends string, D> {
  /** The built-in event of `broadcastData` and `sendData`. */
  event: 'data'
  /** The data of the event. */
  data: {
    /** Resource name. */
    resource: N
    /** Payload, checked by the schema of the resource. */
    data: D
  }
}

interface NotificationEvent {
  /** The built-in event of `broadcastNotification` and `sendNotification`. */
  event: 'notification'
  /** The notification. */
  data: NotificationInput
}

/**
 * An event to send: `{ event, data, priority?, retry?, key? }`. An absent `event` means `message`. With a catalogue, only its
 * names and payloads are accepted; without one, any name and any data with a JSON form.
 */
export type EventInput<C extends AnyCatalogue = RegisteredCatalogue> = EventOptions & (AnyCatalogue extends C ? AnyEvent : CatalogueEvent<Payloads<C['events']>> | DataEvent<Payloads<C['resources']>> | NotificationEvent)

/** A notification to send. */
export interface NotificationInput {
  /** Title to display. */
  title: string
  /** Text to display. */
  message: string
  /** Severity. Default `info`. */
  level?: NotificationLevel | undefined
  /** Actions that the page offers with the notification. Their form is up to the application. */
  actions?: Notification['actions'] | undefined
}
