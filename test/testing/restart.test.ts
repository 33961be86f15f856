import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import ssePlugin, { SSEManager, type SSEOptions } from '../../lib/index.js'
import { forceGap, restart } from '../../lib/testing/index.js'

// What `restart()` and `forceGap()` do to an application; test/testing/faults.test.ts has what its clients receive.

const KB = 1_000

t.test('forceGap() publishes no more than it must, by count or by bytes', async t => {
  for (const [history, maxEventBytes, count, dataBytes] of [
    [{ maxEvents: 10 }, undefined, 11, 0],
    [{ maxEvents: 499 }, undefined, 500, 0],
    [{ maxEvents: 500 }, undefined, 501, 0],
    [{ maxEvents: 1_200 }, undefined, 1_201, 0],
    // Five events of 25 KB cost as much as 130 small ones.
    [{ maxEvents: 129, maxBytes: 100 * KB }, 50 * KB, 130, 0],
    [{ maxEvents: 130, maxBytes: 100 * KB }, 50 * KB, 131, 0],
    [{ maxEvents: 131, maxBytes: 100 * KB }, 50 * KB, 5, 25 * KB],
    [{ maxEvents: 1_000_000, maxBytes: 110 * KB }, 50 * KB, 6, 25 * KB],
    [{ maxEvents: 1_000_000, maxBytes: 50 * KB }, 50 * KB, 3, 25 * KB]
  ] satisfies [SSEOptions['history'], number | undefined, number, number][]) {
    // Not open: `forceGap()` opens it.
    const manager = new SSEManager({ history, ...(maxEventBytes !== undefined && { maxEventBytes }) })
    t.teardown(() => manager.close())
    const { eventLog } = manager.node
    const published: number[] = []
    const kinds = new Set<string>()
    const append = eventLog.append.bind(eventLog)
    eventLog.append = message => {
      published.push(message.data.length)
      kinds.add(JSON.stringify([message.target, message.ephemeral]))
      return append(message)
    }
    await forceGap(manager)
    t.strictSame([published.length, Math.max(...published), Math.min(...published)], [count, dataBytes, dataBytes], JSON.stringify(history))
    t.strictSame([...kinds], ['[{"clientIds":[]},false]'], 'logged, and for nobody')
  }
})

/** An application, and what has happened to it. */
async function build (t: Test): Promise<{ app: FastifyInstance, log: string[] }> {
  const log: string[] = []
  const app: FastifyInstance = Fastify()
  t.teardown(() => app.close())
  await app.register(ssePlugin)
  app.addHook('onReady', async () => { log.push('ready') })
  app.addHook('onClose', async () => { log.push('close') })
  return { app, log }
}

t.test('restart() closes the application before it builds the next, which is ready and listens as the first', async t => {
  for (const how of ['not listening', 'listening', 'next listens itself'] as const) {
    const first = await build(t)
    if (how === 'not listening') await first.app.ready()
    else await first.app.listen({ host: '127.0.0.1', port: 0 })
    const address = first.app.server.address()
    let log: string[] = []
    const next = await restart(first.app, async () => {
      t.strictSame(first.log, ['ready', 'close'], how)
      const second = await build(t)
      log = second.log
      if (how === 'next listens itself') await second.app.listen({ host: '127.0.0.1', port: 0 })
      return second.app
    })
    t.strictSame(log, ['ready'])
    t.equal(next.server.listening, how !== 'not listening')
    if (how === 'listening') t.same(next.server.address(), address)
    if (how === 'next listens itself') t.not((next.server.address() as { port: number }).port, (address as { port: number }).port)
  }
})
