import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import fastify from 'fastify'
import * as loaded from 'fastify-sse-manager'
import * as client from 'fastify-sse-manager/client'
import { shareTabs } from 'fastify-sse-manager/client/tabs'
import * as metrics from 'fastify-sse-manager/metrics'
import * as otel from 'fastify-sse-manager/otel'
import * as redis from 'fastify-sse-manager/redis'
import * as testing from 'fastify-sse-manager/testing'
import smoke from './smoke.cjs'

assert.equal(loaded.default, loaded.ssePlugin)
await smoke.stream(loaded)
await smoke.subpaths(loaded, redis, testing, loaded.memoryBroker, metrics)
assert.equal(typeof otel.registerTracing(new loaded.SSEManager()), 'function')
await smoke.connect(loaded, client)
// Without tabs, the client has a connection of its own.
await smoke.connect(loaded, { createClient: url => shareTabs(url, { user: 'ada' }) })

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

// The command, with the output and the exit code that a shell sees.
const served = fastify()
await served.register(loaded.default, { path: '/sse', keepAliveIntervalMs: 200 })
const url = await served.listen({ host: '127.0.0.1', port: 0 })
const command = (...args) => promisify(execFile)(process.execPath, [fileURLToPath(new URL('../bin/fastify-sse-manager.js', import.meta.url)), ...args])
const { stdout } = await command('doctor', `${url}/sse`, '--json')
assert.equal(JSON.parse(stdout).measured.announcedMs, 200)
await assert.rejects(command('doctor', `${url}/nothing`), ({ code, stdout }) => code === 1 && stdout.includes('The server answers 404'))
await assert.rejects(command('doctor'), ({ code, stderr }) => code === 2 && stderr.includes('The URL of the stream is missing'))
const tailing = command('tail', `${url}/sse`, '--count', '1')
while (served.sse.connectionCount === 0) await new Promise(resolve => setTimeout(resolve, 10))
await served.sse.broadcastEvent({ event: 'greeting', data: 'hello' })
assert.match((await tailing).stdout, /^\S+ {2}greeting {2}hello\n$/)
await served.close()
