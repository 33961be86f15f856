import type { AnyCatalogue, DefaultCatalogue } from './catalogue-types.js'
import type { ClientOptions } from './client-options.js'
import { SSEClient } from './client.js'

export { SSEClientError, type ClientErrorCode } from './errors.js'
export type { AnyCatalogue, AnyEvent, ClientGap, ControlEvents, DefaultCatalogue, EventsOf, PresenceChange, ResourceData, ResourceEvent, ResourcesOf, Unsubscribed } from './catalogue-types.js'
export type { ClientEvent } from './client-event.js'
export type { ClientOptions, EventsOptions } from './client-options.js'
export type { SSEClient } from './client.js'
export type { ClientHeaders, CredentialsQuestion, RequestOptions } from './options.js'
export { readEvents, readRun, type EventReader, type ReadRunOptions, type RunEnding } from './run.js'
export type { ClientState, ClosedState, ConnectingState, OpenState, WaitingState } from './state.js'

/**
 * Connects to an endpoint of the server, in browsers, workers and Node.js. The client reconnects and resumes by itself, until `close()`
 * is called or the server refuses it for good.
 * @param url URL of the endpoint; in a page it can be relative
 * @throws SSE_ERR_CLIENT_OPTION
 * @example
 * ```ts
 * import { createClient } from 'fastify-sse-manager/client'
 * import type { events } from '../server/events.js'
 *
 * const client = createClient<typeof events>('/sse', { subscriptions: ['orders:acme:**'] })
 * client.on('order-paid', ({ orderId }) => show(orderId))
 * client.onGap(() => reload())
 * ```
 */
export function createClient<C extends AnyCatalogue = DefaultCatalogue> (url: string | URL, options: ClientOptions = {}): SSEClient<C> {
  return new SSEClient<C>(url, options)
}
