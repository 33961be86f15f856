import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import fastify from 'fastify'
import * as loaded from 'fastify-sse-manager'
import * as redis from 'fastify-sse-manager/redis'
import * as testing from 'fastify-sse-manager/testing'
import smoke from './smoke.cjs'

assert.equal(loaded.default, loaded.ssePlugin)
await smoke.stream(loaded)
await smoke.subpaths(loaded, redis, testing, loaded.memoryBroker)

// An application may end up with both copies, one for `import` and one for `require`.
const other = createRequire(import.meta.url)('fastify-sse-manager')
assert.notEqual(other.SSEManager, loaded.SSEManager)
assert.deepEqual(Object.keys(other).sort(), Object.keys(loaded).sort())

const mine = await new loaded.SSEManager().broadcastEvent({ event: 'open', data: '' }).catch(error => error)
const theirs = await new other.SSEManager().broadcastEvent({ event: 'open', data: '' }).catch(error => error)
assert.equal(mine.code, 'SSE_ERR_INVALID_EVENT_NAME')
assert.equal(theirs.code, mine.code)
assert.ok(theirs instanceof loaded.SSEError)
assert.ok(mine instanceof other.SSEError)
assert.ok(mine instanceof theirs.constructor)
assert.ok(!(new Error('another') instanceof loaded.SSEError))

// The second copy knows the first one's decoration.
const app = fastify()
await app.register(loaded.default)
await assert.rejects(async () => { await app.register(other.default) }, { code: 'SSE_ERR_ALREADY_REGISTERED' })

// One copy guards the routes that the other has remembered, whichever was loaded last.
for (const copy of [loaded, other]) {
  const guarded = fastify()
  guarded.post('/publish', { sse: true }, async () => 'published')
  guarded.register(copy.default, { requireAuthentication: true, authHandler: ({ token }) => token })
  assert.equal((await guarded.inject({ method: 'POST', url: '/publish' })).statusCode, 401)
  assert.equal((await guarded.inject({ method: 'POST', url: '/publish', headers: { authorization: 'Bearer ada' } })).body, 'published')
  await guarded.close()
}
