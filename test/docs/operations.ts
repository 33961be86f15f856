import Fastify from 'fastify'
import ssePlugin from '../../lib/index.js'
import { listen } from '../helpers/app.js'
import { bare, run, visit, type Drivers } from '../helpers/samples.js'
import { until } from '../helpers/wait.js'

/** Of the samples in docs/operations that are not in guides.ts. */
export const DRIVERS: Drivers = {
  async 'log-stats' (t) {
    const lines: Record<string, unknown>[] = []
    const app = Fastify({ logger: { level: 'info', stream: { write (line: string) { lines.push(JSON.parse(line)) } } } })
    t.teardown(() => app.close())
    await app.register(ssePlugin)
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    await run(t, { app }, [], text => text.replace(/10_?000/, '20'))
    await visit(t, `${await listen(app)}/sse`)
    await until(() => lines.some(({ connections }) => connections === 1))
    t.match(lines.find(({ connections }) => connections === 1), { msg: 'Event streams', lagging: 0, queuedBytes: Number, dropped: 0, stalled: 0 })
  },

  async 'drain-first' (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse() })
    const before: readonly unknown[] = process.rawListeners('SIGTERM')
    await run(t, { app }, [], text => text.replace(/10_?000/, '2_000'))
    const url = await listen(app)
    const stream = await visit(t, `${url}/sse`)
    const ready = async () => (await fetch(`${url}/ready`)).status
    t.equal(await ready(), 200)
    const [listener] = process.rawListeners('SIGTERM').filter(listener => !before.includes(listener))
    const closing: Promise<void> = listener!.call(process, 'SIGTERM')
    t.equal(await ready(), 503)
    t.equal(app.sse.connectionCount, 1, 'the stream goes on')
    await closing
    t.match(await stream.ended, { by: 'server', reason: 'shutdown' })
    t.equal(app.server.listening, false)
    t.same(process.rawListeners('SIGTERM'), before)
  }
}
