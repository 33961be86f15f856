import type { AnyCatalogue, ClientOptions, DefaultCatalogue, SSEClient } from './index.js'
import { createClient, SSEClientError } from './index.js'
import { webLocks } from './tabs/browser.js'
import { Group } from './tabs/group.js'

/** Options of `shareTabs()`: those of `createClient()`, and the user. */
export interface ShareTabsOptions extends ClientOptions {
  /**
   * Who is signed in, such as the user id. Only tabs with the same user and URL share a stream: a page cannot see whose cookie the browser
   * sends. A constant for streams without users.
   */
  user: string
}

/**
 * Creates a client that shares one connection with the other tabs of the browser that have the same user and URL. One tab reads the stream
 * for all, with the subscriptions of all. When it is closed, crashes or does not answer, another one continues at its position. Where tabs
 * cannot share, as in Node.js or in a page without HTTPS, the client has a connection of its own.
 * @throws SSE_ERR_CLIENT_OPTION
 * @example
 * ```ts
 * import { shareTabs } from 'fastify-sse-manager/client/tabs'
 *
 * const client = shareTabs('/sse', { user: 'ada', subscriptions: ['orders:acme:**'] })
 * client.on('order-paid', ({ orderId }) => show(orderId))
 * ```
 */
export function shareTabs<C extends AnyCatalogue = DefaultCatalogue> (url: string | URL, { user, ...options }: ShareTabsOptions): SSEClient<C> {
  if (typeof user !== 'string' || user === '') throw new SSEClientError('SSE_ERR_CLIENT_OPTION', 'user must be a non-empty text')
  const locks = webLocks()
  const client = createClient<C>(url, options)
  // The first attempt begins after this function has returned.
  if (locks !== null) client.transport = new Group(locks, `fastify-sse-manager tabs 1 ${JSON.stringify([user, client.endpoint.url])}`, client)
  return client
}
