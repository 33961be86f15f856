import fastifyAuth from '@fastify/auth'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { assertOrigin, currentUser, findUser, isRefusal } from '../access/authentication.js'
import { AuthenticationFailed, Unauthenticated } from '../errors.js'
import { isAcceptable } from '../wire/headers.js'
import { safeLog } from '../util/logger.js'
import type { SSEManager } from '../manager.js'
import type { ResolvedOptions, SSEUser } from '../options.js'

/** Who a request is from. */
export interface Recognition {
  readonly user: SSEUser | null
  /** The moment before anybody was asked; see `Disconnections`. */
  readonly since: number
}

/** Finds out who a request is from, once. */
export type Guard = (request: FastifyRequest, reply: FastifyReply, requireAuthentication?: boolean) => Promise<Recognition>

/** Where a request keeps the user that a guard has found, as opposed to the application's hooks: a second manager asks for itself. */
const kFound = Symbol('fastify-sse-manager.found')
type Known = FastifyRequest & { [kFound]: SSEUser | null }

/** Who a request is from: origin, strategies, handler; asked once for each request, by the hook or by `reply.sse()`. */
export async function createGuard (fastify: FastifyInstance, options: ResolvedOptions, manager: SSEManager): Promise<Guard> {
  const strategies = await composeStrategies(fastify, options)
  // Where a request keeps its answer. Not weak maps: those cost each stream more than all the rest of its authentication.
  const kAnswer = Symbol('fastify-sse-manager.answer')
  type Asked = FastifyRequest & { [kAnswer]: Promise<Recognition> | null }
  if (!fastify.hasRequestDecorator(kFound)) fastify.decorateRequest(kFound, null)
  fastify.decorateRequest(kAnswer, null)

  const identify = async (request: FastifyRequest, reply: FastifyReply, requireAuthentication: boolean): Promise<SSEUser | null> => {
    if (request.sseUser !== null && request.sseUser === (request as Known)[kFound]) request.sseUser = null
    // A ticket speaks for the request, and for nobody else: what the cookies say does not matter then.
    const redeemed = manager.redeem(request)
    if (redeemed !== null) {
      const ticket = await redeemed
      request.sseUser = (request as Known)[kFound] = ticket
      return ticket
    }
    const { sseUser: given } = request
    const { statusCode } = reply
    let refused = false
    if (strategies !== null) {
      try {
        await strategies(request, reply)
      } catch (cause) {
        refused = true
        if (!isRefusal(cause)) safeLog(request.log).info({ err: cause }, 'No authentication strategy passed')
        if (requireAuthentication) throw new Unauthenticated({ cause })
        // One strategy may have passed, and @fastify/auth has already made it a 401: this stream is nobody's, but it is one.
        request.sseUser = given
        reply.code(statusCode)
      }
    }
    if (!refused && request.sseUser === null) request.sseUser = await findUser(options, request)
    try {
      request.sseUser = currentUser(request.sseUser)
    } catch (cause) {
      throw new AuthenticationFailed({ cause })
    }
    if (request.sseUser === null && requireAuthentication) throw new Unauthenticated()
    manager.assertRecognised(request, request.sseUser)
    if (given === null && request.sseUser !== null) (request as Known)[kFound] = request.sseUser
    return request.sseUser
  }
  const admit = async (request: FastifyRequest, reply: FastifyReply, requireAuthentication: boolean): Promise<Recognition> => {
    assertOrigin(options, request)
    // A route may have other answers, too: whoever rules out a stream is not counted.
    const seat = isAcceptable(request.headers.accept) ? manager.seat(reply.raw, request.ip) : null
    const since = manager.moment
    try {
      const user = await identify(request, reply, requireAuthentication)
      seat?.assign(user?.userId ?? null)
      return { user, since }
    } catch (error) {
      seat?.leave()
      throw error
    }
  }
  return (request, reply, required = options.requireAuthentication) => ((request as Asked)[kAnswer] ??= admit(request, reply, required))
}

/** `authStrategies` as one function, composed by @fastify/auth: the application's, or our own in a scope that shows nothing outside. */
async function composeStrategies (fastify: FastifyInstance, { authStrategies, authRelation }: ResolvedOptions): Promise<((request: FastifyRequest, reply: FastifyReply) => Promise<void>) | null> {
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
