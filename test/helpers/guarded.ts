import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import { type Test } from 'tap'

export function make (t: Test, options?: FastifyServerOptions): FastifyInstance {
  const app = Fastify(options)
  t.teardown(() => app.close())
  return app
}

/** Only with a token; without it before the body is looked at. */
export async function isGuarded (t: Test, app: FastifyInstance, path = '/publish'): Promise<void> {
  const post = (headers: Record<string, string>, body = '{"a":1}') => app.inject({ method: 'POST', url: path, headers: { 'content-type': 'application/json', ...headers }, body })
  const anonymous = await post({}, '{"not json')
  t.equal(anonymous.statusCode, 401, `${path}: nobody`)
  t.equal(anonymous.json().code, 'SSE_ERR_UNAUTHENTICATED')
  const authenticated = await post({ authorization: 'Bearer ada' })
  t.strictSame([authenticated.statusCode, authenticated.json()], [200, { user: 'ada' }], `${path}: a user`)
}

export const unguarded = (names: RegExp) => ({ code: 'SSE_ERR_UNGUARDED_ROUTE', message: names })
