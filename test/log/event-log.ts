import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { memoryBroker, SSEManager, type Broker, type Log } from '../../lib/index.js'
import { openURL, payloads, serve, settleUnlogged } from '../helpers/app.js'
import { turns } from '../helpers/wait.js'

/** What the application may throw so that a logger that reads it, or marks it as pino does, throws too. */
const UNLOGGABLE: Record<string, () => unknown> = {
  'a frozen error': () => Object.freeze(new Error('frozen')),
  'an error with a getter that throws': () => Object.defineProperty(new Error('getter'), 'code', { enumerable: true, get () { throw new Error('no code') } }),
  'an error that is a revoked proxy': () => {
    const { proxy, revoke } = Proxy.revocable(new Error('proxy'), {})
    revoke()
    return proxy
  },
  'an error without a readable message': () => Object.defineProperty(new Error(), 'message', { get () { throw new Error('no message') } }),
  'a frozen object': () => Object.freeze({ reason: 'object' }),
  null: () => null,
  'a symbol': () => Symbol('thrown')
}

t.test('what cannot be logged costs nobody an event: not the others, not the log its order', async t => {
  const lines: any[] = []
  let thrown: () => unknown = () => null
  const deny = (): never => { throw thrown() }
  const service = await serve(t, {
    authorizeTopic: ({ userId }) => userId !== 'mallory' || deny()
  }, { logger: { level: 'error', stream: { write: line => { lines.push(JSON.parse(line)) } } } })
  const ada = await service.join('ada', ['room:1'])
  const start = ada.stream.lastEventId
  const mallory = await service.join('mallory', ['room:*'])
  let published = 0
  for (const [name, make] of Object.entries(UNLOGGABLE)) {
    thrown = make
    const mine = lines.length
    const filter = ({ userId }: { userId: string | null }) => userId !== 'mallory' || deny()
    for (const options of [{ subscriptionIds: ['room:1'] }, { filter }, { filter, local: true }]) {
      t.match(await service.app.sse.broadcastEvent({ event: 'x', data: ++published }, options), { delivered: 1 }, name)
    }
    t.strictSame(lines.slice(mine).map(({ clientId }) => clientId), new Array(3).fill(mallory.connection.clientId), `${name}: each is logged`)
  }
  t.ok(lines.some(({ err }) => err?.message === 'frozen' && err.type === 'Error' && err.stack.includes('event-log')), 'with what can be read of it')
  await settleUnlogged(service, ada.stream, mallory.stream)
  t.strictSame(payloads(ada.stream, 'x'), Array.from({ length: published }, (_, i) => i + 1))
  t.strictSame(payloads(mallory.stream, 'x'), [])
  t.equal(ada.stream.lastEventId.split('.')[1], (published * 2 / 3).toString(36))
  const back = await service.join('mallory', ['room:*'], { cursor: start })
  await settleUnlogged(service, back.stream)
  t.strictSame([payloads(back.stream, 'x'), back.stream.named('sse:gap').length], [[], 0], 'nor does a replay stop there')
})

t.test('a logger that throws, rejects or lacks methods stops nothing, and is reported once', async t => {
  const rejections: unknown[] = []
  const reports: Error[] = []
  const onRejection = (error: unknown) => { rejections.push(error) }
  const onWarning = (warning: Error & { code?: string }) => { if (warning.code === 'SSE_LOGGER_FAILED') reports.push(warning) }
  process.on('unhandledRejection', onRejection).on('warning', onWarning)
  t.teardown(() => process.off('unhandledRejection', onRejection).off('warning', onWarning))
  const fail = (): never => { throw new Error('disk full') }
  const reject = async (): Promise<never> => fail()
  const loggers: unknown[] = [{ error: fail, warn: fail, info: fail, debug: fail }, { error: reject, warn: reject, info: reject, debug: reject }, {}, null, { get error () { return fail() } }]
  for (const logger of loggers) {
    const manager = new SSEManager({}, logger as Log)
    t.teardown(() => manager.close())
    const server = createServer((request, response) => { manager.createConnection({ request, response }) })
    await once(server.listen(0, '127.0.0.1'), 'listening')
    t.teardown(() => { server.close() })
    const stream = await openURL(t, `http://127.0.0.1:${(server.address() as AddressInfo).port}`)
    t.match(await manager.broadcastEvent({ event: 'x', data: 1 }, { filter: () => { throw new Error('filter') } }), { delivered: 0 })
    t.match(await manager.broadcastEvent({ event: 'y', data: 1 }), { delivered: 1 })
    await stream.until(() => stream.named('y').length >= 1)
  }
  await turns(3)
  t.strictSame(rejections, [])
  t.match(reports.map(({ message }) => message), [/^The application's logger failed: disk full\. Not logged: /])
  t.equal(reports.length, 1)
})

t.test('a log that is open serves one manager', async t => {
  const broker = memoryBroker()
  const first = new SSEManager({ broker })
  t.teardown(() => first.close())
  await first.open()
  const second = new SSEManager({ broker })
  await t.rejects(second.open(), { code: 'SSE_ERR_INVALID_OPTION' })
  await t.rejects(second.broadcastEvent({ data: 1 }), { code: 'SSE_ERR_INVALID_OPTION' })
  t.match(await first.broadcastEvent({ data: 1 }), { delivered: 0 })
})

t.test('a log that could not be opened is opened by whoever asks next', async t => {
  const log = memoryBroker()
  let attempts = 0
  const broker: Broker = {
    shared: false,
    get epoch () { return log.epoch },
    get position () { return log.position },
    open: async (sink, history, now) => {
      if (++attempts === 1) throw new Error('away')
      await log.open(sink, history, now)
    },
    publish: message => log.publish(message),
    read: request => log.read(request),
    claim: (key, ttlMs) => log.claim(key, ttlMs),
    close: () => log.close()
  }
  const manager = new SSEManager({ broker })
  t.teardown(() => manager.close())
  await t.rejects(Promise.all([manager.open(), manager.open()]), { message: 'away' })
  t.equal(attempts, 1, 'those that ask at the same time share an attempt')
  t.match(await manager.broadcastEvent({ data: 1 }), { delivered: 0 })
  await manager.open()
  t.equal(attempts, 2)
  t.match(manager.health(), { status: 'up' })
})
