import fastifyAuth from '@fastify/auth'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { AuthenticationFailed } from '../errors.js'
import type { ResolvedOptions } from '../options.js'

/** Runs the strategies of the application. Resolves if they accept the request, as `authRelation` requires; otherwise rejects. */
export type Strategies = (request: FastifyRequest, reply: FastifyReply) => Promise<void>

/**
 * Composes `authStrategies` into one function; null without the option. The @fastify/auth of the application is used if it is registered.
 * Otherwise it is registered in an encapsulated scope, where the application does not see it.
 */
export async function composeStrategies (fastify: FastifyInstance, { authStrategies, authRelation }: ResolvedOptions): Promise<Strategies | null> {
  if (authStrategies === undefined) return null
  let run: ReturnType<FastifyInstance['auth']> | undefined
  // The array and its groups are copied, because @fastify/auth replaces the functions in them.
  const compose = (scope: FastifyInstance) => { run = scope.auth(authStrategies.map(strategy => Array.isArray(strategy) ? [...strategy] : strategy), { relation: authRelation }) }
  if (fastify.hasDecorator('auth')) {
    compose(fastify)
  } else {
    await fastify.register(async scope => {
      await scope.register(fastifyAuth)
      compose(scope)
    })
  }
  return (request, reply) => new Promise((resolve, reject) => {
    // A strategy can send the response itself, or never call back. The promise then rejects when the response closes.
    const onClose = () => reject(new AuthenticationFailed(''))
    reply.raw.once('close', onClose)
    ;(run as unknown as (request: FastifyRequest, reply: FastifyReply, done: (error?: Error) => void) => void)(request, reply, error => {
      reply.raw.off('close', onClose)
      if (error) reject(error)
      else resolve()
    })
  })
}
