import type { FastifyInstance, FastifyReply, FastifyRequest, RegisterOptions, RouteOptions } from 'fastify'
import { InvalidOption, InvalidSubscription, SubscriptionForbidden } from '../errors.js'
import { assertChosenSubscription, isPattern } from '../events/topic.js'
import type { Guard } from './guard.js'
import { quote } from '../util/quote.js'
import type { ResolvedOptions } from '../options.js'
import type { SSEOptions } from '../../types/options.js'

/** The options of Fastify's `register`. They apply to the ready endpoint. */
export type Routing = Pick<RegisterOptions, 'prefix' | 'logLevel' | 'logSerializers'>

/**
 * Separates the options of this plugin from those of `register`. Fastify applies the latter only to plugins with a scope of their own.
 * @throws SSE_ERR_INVALID_OPTION when `prefix` is not a string
 */
export function splitOptions (given: SSEOptions & Routing): { own: SSEOptions, routing: Routing } {
  // Other values are returned unchanged, and `resolveOptions` rejects them. A promise must not be spread: the result has no options.
  if (typeof given !== 'object' || given === null || 'then' in given) return { own: given, routing: {} }
  const { prefix, logLevel, logSerializers, ...own } = given
  if (prefix !== undefined && typeof prefix !== 'string') throw new InvalidOption('prefix', 'must be a string')
  return { own, routing: { ...(prefix !== undefined && { prefix }), ...(logLevel !== undefined && { logLevel }), ...(logSerializers !== undefined && { logSerializers }) } }
}

/** Query parameters that a client can confuse with `subscription`: plurals, and the array notation of other query formats. */
const NEARLY_SUBSCRIPTION = /^subscriptions?(?:[_-]?ids?)?(?:\[.*\]|\.\d+)?$/i

/**
 * Registers the ready endpoint: a GET route that opens a stream. Clients choose topics with `?subscription=` if `clientSubscriptions`
 * allows it.
 */
export function registerEndpoint (fastify: FastifyInstance, guard: Guard, path: string, { clientSubscriptions, snapshot, decorators }: ResolvedOptions, { prefix = '', ...logging }: Routing): void {
  // On the instance of the application, not in a scope of its own: hooks that the application adds later apply to the endpoint as well.
  const route: RouteOptions & Record<string, unknown> = {
    ...logging as Partial<RouteOptions>,
    method: 'GET',
    url: prefixed(prefix, path),
    [decorators.reply]: true,
    handler: async (request, reply) => {
      let subscriptions: string[]
      try {
        subscriptions = chosenSubscriptions(request, clientSubscriptions)
      } catch (error) {
        guard.refused(reply, error)
        throw error
      }
      await (reply as unknown as Record<string, FastifyReply['sse']>)[decorators.reply]!({ subscriptions, ...(snapshot !== undefined && { snapshot }) })
    }
  }
  fastify.route(route)
}

/** Returns the topics and patterns that a client has chosen. @throws SSE_ERR_INVALID_SUBSCRIPTION, SSE_ERR_SUBSCRIPTION_FORBIDDEN */
function chosenSubscriptions (request: FastifyRequest, clientSubscriptions: ResolvedOptions['clientSubscriptions']): string[] {
  // Parsed from the URL, without a schema: the application can have its own validator or query parser.
  const [, ...query] = request.raw.url!.split('?')
  const subscriptions: string[] = []
  for (const [name, value] of new URLSearchParams(query.join('?'))) {
    if (name === 'subscription') subscriptions.push(value)
    // Without this error, the stream would open without subscriptions and never receive an event.
    else if (NEARLY_SUBSCRIPTION.test(name)) throw new InvalidSubscription(`parameter ${quote(name)}`, 'is not read: write "subscription", once for each, as in ?subscription=a&subscription=b')
  }
  for (const subscription of subscriptions) {
    if (clientSubscriptions === false) throw new SubscriptionForbidden(quote(subscription), 'clients may choose topics only with the option "clientSubscriptions"')
    if (clientSubscriptions === true && isPattern(subscription)) throw new SubscriptionForbidden(quote(subscription), 'clients may choose patterns only if the option "clientSubscriptions" is \'patterns\'')
    assertChosenSubscription(subscription)
  }
  return subscriptions
}

/** Joins a prefix and a path as Fastify joins the prefix of a scope and the URL of a route. */
function prefixed (prefix: string, path: string): string {
  if (prefix === '') return path
  const start = prefix.startsWith('/') ? prefix : `/${prefix}`
  return start.endsWith('/') ? start + path.slice(1) : start + path
}
