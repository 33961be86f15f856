import fastifyAuth from '@fastify/auth'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { AuthenticationFailed } from '../errors.js'
import type { ResolvedOptions } from '../options.js'

/** Resolves when the application's strategies have passed the request, as `authRelation` says; rejects when they have not. */
export type Strategies = (request: FastifyRequest, reply: FastifyReply) => Promise<void>

/** `authStrategies` as one function, composed by @fastify/auth: the application's, or our own in a scope that shows nothing outside. */
export async function composeStrategies (fastify: FastifyInstance, { authStrategies, authRelation }: ResolvedOptions): Promise<Strategies | null> {
  if (authStrategies === undefined) return null
  let run: ReturnType<FastifyInstance['auth']> | undefined
  // Copied with its groups, as @fastify/auth binds the functions in place.
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
    // A strategy that answers by itself, or never does, ends with the request.
    const onClose = () => reject(new AuthenticationFailed())
    reply.raw.once('close', onClose)
    ;(run as unknown as (request: FastifyRequest, reply: FastifyReply, done: (error?: Error) => void) => void)(request, reply, error => {
      reply.raw.off('close', onClose)
      if (error) reject(error)
      else resolve()
    })
  })
}
