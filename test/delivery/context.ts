import { AsyncLocalStorage } from 'node:async_hooks'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { SSEManager } from '../../lib/index.js'
import { block, isApplicationEvent, openURL, payloads, serve, settleUnlogged } from '../helpers/app.js'
import { until } from '../helpers/wait.js'
import type { TestStream } from '../../lib/testing/index.js'

// What a broadcast is, who gets it and what it looks like on the wire; seen by clients on real connections.

/** Names of the events a client has had, in order. */
const seen = (stream: TestStream) => stream.events.filter(isApplicationEvent).filter(({ event }) => event !== 'settled' && event !== 'filler').map(({ event }) => event)

// --- In whose context the application's code is called ---

t.test('a filter runs in its publisher\'s AsyncLocalStorage context, live and at replay', async t => {
  const context = new AsyncLocalStorage<string>()
  const service = await serve(t, {}, {}, app => {
    app.addHook('onRequest', (request, _reply, done) => context.run((request.query as { user: string }).user, done))
  })
  const { app, join } = service
  const acme = await join('acme')
  const evil = await join('evil')
  const start = acme.stream.lastEventId
  const filter = ({ userId }: { userId: string | null }) => userId === context.getStore()
  for (const tenant of ['acme', 'evil']) {
    await context.run(tenant, async () => {
      for (const options of [{}, { ephemeral: true }, { local: true }]) await app.sse.broadcastEvent({ event: tenant, data: 1 }, { filter, ...options })
      // From inside a delivery of another's.
      const nested: Promise<unknown>[] = []
      await context.run('other', () => app.sse.broadcastEvent({ event: 'other', data: 1 }, {
        filter: () => {
          if (nested.length === 0) nested.push(context.run(tenant, () => app.sse.broadcastEvent({ event: tenant, data: 2 }, { filter })))
          return context.getStore() !== 'other'
        }
      }))
      await Promise.all(nested)
    })
  }
  await settleUnlogged(service, acme.stream, evil.stream)
  t.strictSame([seen(acme.stream), seen(evil.stream)], [new Array(4).fill('acme'), new Array(4).fill('evil')])
  for (const user of ['evil', 'acme']) {
    const back = await join(user, [], { cursor: start })
    await settleUnlogged(service, back.stream)
    t.strictSame(seen(back.stream), [user, user], 'the logged ones, to their tenant')
  }
})

t.test('authorizeTopic runs in no context, and authorizeSubscription in that of the request, or in none', async t => {
  const context = new AsyncLocalStorage<string>()
  const topics: unknown[] = []
  const subscriptions: unknown[] = []
  const service = await serve(t, {
    authorizeTopic: () => {
      topics.push(context.getStore())
      return true
    },
    authorizeSubscription: ({ subscriptionId }) => {
      subscriptions.push([subscriptionId, context.getStore()])
      return true
    }
  }, {}, app => {
    app.addHook('onRequest', (_request, _reply, done) => context.run('request', done))
  })
  const joined = await service.join('ada', ['room:*'])
  const { stream, connection } = joined
  const start = stream.lastEventId
  const asked = (what: string): void => {
    t.ok(topics.length > 0 && topics.every(store => store === undefined), `${what}: ${topics}`)
    topics.length = 0
  }
  await context.run('application', async () => {
    await service.app.sse.broadcastEvent({ event: 'x', data: 1 }, { subscriptionIds: ['room:1'], filter: () => context.getStore() === 'application' })
    asked('a delivery')
    connection.hasSubscription('room:1')
    asked('hasSubscription')
    await block(joined)
    await service.app.sse.broadcastEvent({ event: 'x', data: 2 }, { subscriptionIds: ['room:1'] })
    asked('a delivery')
    await service.app.sse.reauthorize('ada')
    asked('what waits')
    await connection.addSubscription('a')
    await service.app.sse.addSubscription(connection.clientId, 'b')
  })
  stream.thaw()
  await settleUnlogged(service, stream)
  t.strictSame(payloads(stream, 'x'), [1, 2])
  const back = await service.join('ada', ['room:*'], { cursor: start })
  await settleUnlogged(service, back.stream)
  t.strictSame(payloads(back.stream, 'x'), [1, 2])
  asked('a replay')
  t.strictSame(subscriptions, [['room:*', 'request'], ['room:*', undefined], ['a', undefined], ['b', undefined], ['room:*', 'request']])
})

t.test('what is written later is written in no context', async t => {
  const context = new AsyncLocalStorage<string>()
  const manager = new SSEManager({ keepAliveIntervalMs: 20 })
  t.teardown(() => manager.close())
  const writes: [what: string, store: unknown][] = []
  const server = createServer((request, response) => {
    const { write } = response
    response.write = function (this: unknown, ...args: [string | Buffer]) {
      writes.push([String(args[0]), context.getStore()])
      return Reflect.apply(write, response, args)
    } as typeof write
    // The first request opens the log, and so begins all that goes on by itself.
    context.run('request', () => manager.createConnection({ request, response }))
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  t.teardown(() => { server.close() })
  const stream = await openURL(t, `http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  const [connection] = manager.connections()
  context.run('application', () => connection!.sendEvent({ event: 'x', data: 1 }))
  await stream.next('x')
  await context.run('application', () => manager.broadcastEvent({ event: 'y', data: 1 }))
  await stream.next('y')
  await until(() => stream.comments.includes('keep-alive'))
  t.match(writes.shift(), [/stream/, 'request'])
  for (const what of ['event: x', 'event: y', 'keep-alive']) t.ok(writes.some(([text]) => text.includes(what)), what)
  t.strictSame(writes.filter(([, store]) => store !== undefined), [])
})
