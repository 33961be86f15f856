import { writeSync } from 'node:fs'
import Fastify from 'fastify'
import ssePlugin from '../../lib/index.js'
import { onTrouble } from '../helpers/trouble.js'

// A server that publishes without a pause until it is told to end, for shutdown.test.ts: node server.ts PORT DRAIN_MS.
// What it says goes to the standard output: a line for each thing a test waits for.

const [port, drainMs] = process.argv.slice(2).map(Number)
const say = (line: string) => { writeSync(1, `${line}\n`) }
onTrouble((what, event) => { say(`${event} ${what instanceof Error ? what.stack : what}`) })

const app = Fastify()
await app.register(ssePlugin, { drainMs: drainMs!, retryMs: 200 })
app.addHook('onRequest', async (request, reply) => { reply.header('access-control-allow-origin', '*') })
app.get('/sse', async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
app.get('/', (request, reply) => reply.type('text/html').send('<!doctype html><title>page</title>'))
await app.listen({ host: '127.0.0.1', port: port! })

let n = 0
let accepted = 0
let refused = 0
const publishing = setInterval(() => {
  for (let i = 0; i < 5; i++) {
    app.sse.broadcastEvent({ data: n++ }, { subscriptionIds: ['news'] }).then(() => { accepted++ }, error => {
      if (error.code === 'SSE_ERR_CLOSED') refused++
      else say(`rejected ${error.stack}`)
    })
  }
}, 10)

process.once('SIGTERM', async () => {
  const began = performance.now()
  await Promise.all([app.close(), app.close()])
  await app.close()
  say(`closed after ${Math.round(performance.now() - began)} ms, ${accepted} accepted`)
  // Who publishes on is refused, not ignored; then nothing is left to do, and the process ends by itself.
  setTimeout(() => {
    clearInterval(publishing)
    say(`refused ${refused > 0}`)
  }, 50)
})
say(`listening ${app.sse.connectionCount} ${(app.server.address() as { port: number }).port}`)
