import type { FastifyInstance, FastifyReply, RegisterOptions, RouteOptions } from 'fastify'
import { InvalidOption, InvalidSubscription, SubscriptionForbidden } from '../errors.js'
import { assertChosenSubscription, isPattern } from '../events/topic.js'
import { quote } from '../util/quote.js'
import type { ResolvedOptions } from '../options.js'
import type { SSEOptions } from '../../types/options.js'

/** What Fastify's `register` takes beside the options of a plugin. It concerns the routes of the plugin: the ready endpoint. */
export type Routing = Pick<RegisterOptions, 'prefix' | 'logLevel' | 'logSerializers'>

/** Tells the options of this plugin from those of `register`. Fastify applies the latter in plugins with a scope of their own only. */
export function splitOptions (given: SSEOptions & Routing): { own: SSEOptions, routing: Routing } {
  // Whatever else it is, `resolveOptions` refuses it as it was given: a promise spread is an object without options.
  if (typeof given !== 'object' || given === null || 'then' in given) return { own: given, routing: {} }
  const { prefix, logLevel, logSerializers, ...own } = given
  if (prefix !== undefined && typeof prefix !== 'string') throw new InvalidOption('prefix', 'must be a string')
  return { own, routing: { ...(prefix !== undefined && { prefix }), ...(logLevel !== undefined && { logLevel }), ...(logSerializers !== undefined && { logSerializers }) } }
}

/** Names that a client may mean by `subscription`: those of arrays in other query formats, and plurals. */
const NEARLY_SUBSCRIPTION = /^subscriptions?(?:[_-]?ids?)?(?:\[.*\]|\.\d+)?$/i

/** The ready endpoint: a stream for each client that may connect, with the topics the client asks for, if that is allowed. */
export function registerEndpoint (fastify: FastifyInstance, path: string, { clientSubscriptions, decorators }: ResolvedOptions, { prefix = '', ...logging }: Routing): void {
  // On the instance of the application, not in a scope: hooks that the application adds later apply as well.
  const route: RouteOptions & Record<string, unknown> = {
    ...logging as Partial<RouteOptions>,
    method: 'GET',
    url: prefixed(prefix, path),
    [decorators.reply]: true,
    handler: async (request, reply) => {
      // Not by a schema: the application may have a validator, or a query parser, of its own.
      const [, ...query] = request.raw.url!.split('?')
      const subscriptions: string[] = []
      for (const [name, value] of new URLSearchParams(query.join('?'))) {
        if (name === 'subscription') subscriptions.push(value)
        // Overlooked, it would be a stream that is silent for ever.
        else if (NEARLY_SUBSCRIPTION.test(name)) throw new InvalidSubscription(`parameter ${quote(name)}`, 'is not read: write "subscription", once for each, as in ?subscription=a&subscription=b')
      }
      for (const subscription of subscriptions) {
        if (clientSubscriptions === false) throw new SubscriptionForbidden(quote(subscription), 'clients may choose topics only with the option "clientSubscriptions"')
        if (clientSubscriptions === true && isPattern(subscription)) throw new SubscriptionForbidden(quote(subscription), 'clients may choose patterns only if the option "clientSubscriptions" is \'patterns\'')
        assertChosenSubscription(subscription)
      }
      await (reply as unknown as Record<string, FastifyReply['sse']>)[decorators.reply]!({ subscriptions })
    }
  }
  fastify.route(route)
}

/** As Fastify joins the prefix of a scope and the URL of a route. */
function prefixed (prefix: string, path: string): string {
  if (prefix === '') return path
  const start = prefix.startsWith('/') ? prefix : `/${prefix}`
  return start.endsWith('/') ? start + path.slice(1) : start + path
}
