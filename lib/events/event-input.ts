import type { Static, TSchema } from '@sinclair/typebox'
import type { Notification, NotificationLevel } from './catalogue.js'
import type { EventPriority } from './event-rules.js'

/**
 * Augment this once, in a file that imports from the package, and names and payloads are checked at compile time everywhere:
 *
 *     declare module 'fastify-sse-manager' { interface Register { catalogue: typeof events } }
 */
export interface Register {}

type Payloads<S extends Record<string, TSchema>> = { [N in keyof S & string]: Static<S[N]> }
type Events = Register extends { catalogue: { events: infer E extends Record<string, TSchema> } } ? Payloads<E> : Record<string, unknown>
type Resources = Register extends { catalogue: { resources: infer R extends Record<string, TSchema> } } ? Payloads<R> : Record<string, unknown>

/** A resource of the registered catalogue; without one any string. */
export type ResourceName = keyof Resources & string
export type ResourcePayload<N extends ResourceName> = Resources[N]
/** An event of the registered catalogue, or a built-in one; without a catalogue any string. */
export type EventName = (keyof Events & string) | 'data' | 'notification'

/** What an event carries beside its name and data. */
export interface EventOptions {
  /** Order of delivery in a backlog. Default NORMAL; notifications made by this package HIGH. */
  priority?: EventPriority
  /** Reconnection time this event tells the client, 100 to 3,600,000 milliseconds. */
  retry?: number
  /** Conflation: an undelivered older event with the same key and target is replaced by this one. 1 to 256 characters. */
  key?: string
}

type AnyEvent = { event?: string, data: unknown }
type CatalogueEvent = { [N in keyof Events & string]: N extends 'message' ? { event?: N, data: Events[N] } : { event: N, data: Events[N] } }[keyof Events & string]
type DataEvent = { [N in ResourceName]: { event: 'data', data: { resource: N, data: Resources[N] } } }[ResourceName]
type NotificationEvent = { event: 'notification', data: NotificationInput }

/** `{ event, data }`: with a registered catalogue exactly its names and payloads; without one any name and data. No name is `message`. */
export type EventInput = EventOptions & (Register extends { catalogue: unknown } ? CatalogueEvent | DataEvent | NotificationEvent : AnyEvent)

/** A notification as the application gives it. */
export interface NotificationInput {
  title: string
  message: string
  /** Default `info`. */
  level?: NotificationLevel
  actions?: NonNullable<Notification['actions']>
}
