'use strict'

// The built package as an application loads it, by its own name: `require` here, `import` in smoke.mjs.

const assert = require('node:assert/strict')
const { once } = require('node:events')
const http = require('node:http')
const fastify = require('fastify')
const { Registry } = require('prom-client')

/** Registers the plugin and carries one event over a real socket. */
async function stream (loaded) {
  const { default: ssePlugin, SSEManager, SSEConnection, EventPriority } = loaded
  const app = fastify()
  await app.register(ssePlugin)
  assert.ok(app.sse instanceof SSEManager)
  app.get('/sse', { sse: true }, async (request, reply) => {
    const connection = await reply.sse({ subscriptions: ['news:**'] })
    assert.ok(connection instanceof SSEConnection)
  })
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const deadline = AbortSignal.timeout(10_000)
  const [response] = await once(http.get(`${url}/sse`), 'response', { signal: deadline })
  assert.equal(response.statusCode, 200)
  assert.equal(response.headers['content-type'], 'text/event-stream')

  let text = ''
  response.setEncoding('utf8').on('data', part => { text += part })
  const { id, delivered } = await app.sse.broadcastData('news', { headline: 'é' }, { subscriptionIds: ['news:today'], priority: EventPriority.HIGH })
  assert.equal(delivered, 1)
  const frame = `id: ${id}\nevent: data\ndata: {"resource":"news","data":{"headline":"é"}}\n\n`
  while (!text.includes(frame)) await once(response, 'data', { signal: deadline })

  const closing = app.close()
  await once(response, 'end', { signal: deadline })
  await closing
  assert.match(text, /\nevent: sse:close\ndata: {"reason":"shutdown","reconnect":true}\n\n$/)
}

/** What the subpaths export, without a Redis. */
async function subpaths ({ SSEError, SSEManager }, { redisStreamsBroker }, { brokerContract }, memoryBroker, { registerMetrics }) {
  const registry = new Registry()
  registerMetrics(new SSEManager(), registry)
  assert.match(await registry.metrics(), /^sse_connections 0$/m)
  assert.throws(() => redisStreamsBroker({ client: 'nowhere' }), error => error instanceof SSEError && error.code === 'SSE_ERR_INVALID_OPTION')
  // A URL loads ioredis, when the log is opened.
  const broker = redisStreamsBroker({ client: 'redis://127.0.0.1:1', startTimeoutMs: 2000 })
  await assert.rejects(broker.open({ deliver () {}, gap () {}, state () {} }, { maxEvents: 1, maxAgeMs: 1, maxBytes: 1 }), error => error.code === 'SSE_ERR_BROKER_UNAVAILABLE' && /ECONNREFUSED/.test(error.cause?.message))
  const runs = []
  brokerContract((name, run) => runs.push(run()), 'memory', memoryBroker)
  await Promise.all(runs)
  assert.ok(runs.length > 5)
}

/** The client receives an event of the server. */
async function connect ({ default: ssePlugin }, { createClient }) {
  const app = fastify()
  await app.register(ssePlugin, { path: '/sse' })
  const client = createClient(`${await app.listen({ host: '127.0.0.1', port: 0 })}/sse`)
  await new Promise(resolve => client.onState(resolve))
  assert.deepEqual(client.state, { name: 'open' })
  const received = new Promise(resolve => client.onData('news', resolve))
  await app.sse.broadcastData('news', { headline: 'é' })
  assert.deepEqual(await received, { headline: 'é' })
  client.close()
  await app.close()
}

module.exports = { stream, subpaths, connect }

if (require.main === module) {
  const loaded = require('fastify-sse-manager')
  assert.equal(loaded.default, loaded.ssePlugin)
  stream(loaded)
  connect(loaded, require('fastify-sse-manager/client'))
  subpaths(loaded, require('fastify-sse-manager/redis'), require('fastify-sse-manager/testing'), loaded.memoryBroker, require('fastify-sse-manager/metrics'))
}
