import type { FastifyInstance, FastifyReply } from 'fastify'
import { SubscriptionForbidden } from '../errors.js'
import { assertChosenSubscription, isPattern, quote } from '../events/topic.js'
import type { ResolvedOptions } from '../options.js'

/** The ready endpoint: one stream for whoever may connect, with the topics the client asks for, if that is allowed. */
export function registerEndpoint (fastify: FastifyInstance, path: string, { clientSubscriptions, decorators }: ResolvedOptions): void {
  fastify.route({
    method: 'GET',
    url: path,
    [decorators.reply]: true,
    handler: async (request, reply) => {
      // Not by a schema: the application may have a validator, or a query parser, of its own.
      const [, ...query] = request.raw.url!.split('?')
      const subscriptions = new URLSearchParams(query.join('?')).getAll('subscription')
      for (const subscription of subscriptions) {
        if (clientSubscriptions === false || (clientSubscriptions === true && isPattern(subscription))) throw new SubscriptionForbidden(quote(subscription))
        assertChosenSubscription(subscription)
      }
      await (reply as unknown as Record<string, FastifyReply['sse']>)[decorators.reply]!({ subscriptions })
    }
  })
}
