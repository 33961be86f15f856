// Loads and registers one implementation in a fresh process, and prints how long it took: node boot.mjs <implementation>
import Fastify from 'fastify'
import { build } from './build.mjs'

const implementations = {
  ours: async app => { await app.register((await import(new URL('lib/index.js', build))).default) },
  /** With a catalogue, as an application that types its events. The schemas are made by TypeBox. */
  'ours-typed': async app => {
    const { Type } = await import('@sinclair/typebox')
    const { default: ssePlugin, defineEvents } = await import(new URL('lib/index.js', build))
    const events = defineEvents({ events: { order: Type.Object({ id: Type.Integer(), total: Type.Number() }) } })
    await app.register(ssePlugin, { events })
  },
  'fastify-sse': async app => { await app.register((await import('@fastify/sse')).default) },
  'fastify-sse-v2': async app => { await app.register((await import('fastify-sse-v2')).FastifySSEPlugin) }
}

const app = Fastify()
const start = performance.now()
const cpu = process.cpuUsage()
await implementations[process.argv[2]](app)
await app.ready()
const { user, system } = process.cpuUsage(cpu)
console.log(JSON.stringify({ bootMs: performance.now() - start, bootCpu: (user + system) / 1000 }))
process.exit()
