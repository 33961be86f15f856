import type { Static, TSchema } from '@sinclair/typebox'
import type { Notification } from '../events/catalogue.js'
import type { GapReason } from '../events/control.js'
import type { AnyCatalogue, RegisteredCatalogue } from '../events/event-input.js'
import type { ClientEvent } from './client-event.js'

export type { AnyCatalogue }

/** The catalogue of a client without a type argument: the registered one; without one, any names. */
export type DefaultCatalogue = RegisteredCatalogue

type Payloads<S extends Record<string, TSchema>> = string extends keyof S ? Record<string, any> : { [N in keyof S & string]: Static<S[N]> }

/** The payloads of the events of a catalogue, by event name. */
export type EventsOf<C extends AnyCatalogue> = Payloads<C['events']>
/** The payloads of the resources of a catalogue, by resource name. */
export type ResourcesOf<C extends AnyCatalogue> = Payloads<C['resources']>

/** Events are lost: those after the cursor of the client are no longer in the log. */
export interface ClientGap {
  /** Why, see the reasons of a gap. */
  readonly reason: GapReason
  /** The last event before the loss; empty: the newest id that the client has. */
  readonly lastEventId: string
  /** Whether a snapshot follows, which replaces the state of the client. */
  readonly snapshot?: boolean
}

/** A user joins a topic, or leaves it. */
export interface PresenceChange {
  /** The topic. */
  readonly subscriptionId: string
  /** The user. */
  readonly userId: string
}

/** A subscription was taken away. */
export interface Unsubscribed {
  /** The subscription. */
  readonly subscriptionId: string
  /** Why. */
  readonly reason: string
}

/** The control events of a stream. */
export interface ControlEvents {
  /** Events are lost. */
  'sse:gap': ClientGap
  /** A subscription was taken away. */
  'sse:unsubscribed': Unsubscribed
  /** A user joins a topic. */
  'sse:join': PresenceChange
  /** A user leaves a topic. */
  'sse:leave': PresenceChange
}

/** The data of a `data` event. */
export interface ResourceData<R extends string = string, D = unknown> {
  /** Name of the resource. */
  readonly resource: R
  /** Its payload. */
  readonly data: D
}

/** An event of one of the resources. */
export type ResourceEvent<C extends AnyCatalogue, R extends keyof ResourcesOf<C> & string = keyof ResourcesOf<C> & string> = { [N in R]: ClientEvent<'data', ResourceData<N, ResourcesOf<C>[N]>> }[R]

/** Any event of a stream: of the catalogue, `data`, `notification`, and control events. */
export type AnyEvent<C extends AnyCatalogue> =
  | { [N in keyof EventsOf<C> & string]: ClientEvent<N, EventsOf<C>[N]> }[keyof EventsOf<C> & string]
  | { [N in keyof ControlEvents]: ClientEvent<N, ControlEvents[N]> }[keyof ControlEvents]
  | ResourceEvent<C>
  | ClientEvent<'notification', Notification>
