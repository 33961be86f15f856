import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { DisconnectedUsers } from '../../lib/access/disconnected-users.js'
import { memoryBroker, SSEManager } from '../../lib/index.js'
import { openURL, serve } from '../helpers/app.js'
import { RawSocket } from '../helpers/raw.js'
import { turns, until } from '../helpers/wait.js'

t.test('a user who is disconnected while on the way in stays outside', async t => {
  const gates: (() => void)[] = []
  const wait = () => new Promise<void>(resolve => { gates.push(resolve) })
  const service = await serve(t, {
    requireAuthentication: true,
    authorizeSubscription: async ({ subscriptionId }) => {
      if (subscriptionId === 'slow') await wait()
      return true
    }
  }, {}, app => {
    app.get('/handler', { sse: true }, async (_request, reply) => {
      await wait()
      await reply.sse()
    })
    app.get('/bare', { preHandler: wait }, async (_request, reply) => { await reply.sse({ subscriptions: ['slow'] }) })
    app.post('/body', { sse: true }, async (_request, reply) => { await reply.sse() })
    app.get('/other', { sse: true }, async () => {
      await wait()
      return { fine: true }
    })
  })
  const { app, open, join, url } = service
  const pass = async () => { (await until(() => gates.shift()))() }
  for (const [path, waits, status] of [['/handler', 1, 401], ['/bare', 2, 401], ['/other', 1, 200]] as const) {
    const asked = open(`${path}?user=ada`)
    const bystander = open(`${path}?user=grace`)
    for (let i = 1; i < waits; i++) {
      await until(() => gates.length === 2)
      await pass()
      await pass()
    }
    await until(() => gates.length === 2)
    t.equal(await app.sse.disconnectUser('ada'), 0)
    await pass()
    await pass()
    const [ada, grace] = await Promise.all([asked, bystander])
    t.equal(ada.status, status, path)
    t.equal(grace.status, 200, 'others get in')
    await ada.close()
    await grace.close()
  }
  // A client can make the way in as long as it likes.
  const { socket } = new RawSocket(url, { method: 'POST', path: '/body?user=ada', headers: { 'content-type': 'application/json', 'content-length': '2' } })
  let answer = ''
  socket.on('data', bytes => { answer += bytes })
  await until(() => new Promise<boolean>(resolve => { app.server.getConnections((_error, count) => resolve(count > 0)) }))
  await turns(20)
  await app.sse.disconnectUser('ada')
  socket.write('{}')
  await until(() => answer !== '')
  t.match(answer, /^HTTP\/1\.1 401 /)
  socket.destroy()
  await until(() => app.sse.connectionCount === 0)
  const { connection } = await join('ada')
  t.ok(connection.isConnected, 'who is recognised afterwards gets in')
  t.equal(await app.sse.disconnectUser('ada'), 1)
})

t.test('an answer of the application that was on its way when the user was disconnected is none', async t => {
  const answers: (() => void)[] = []
  const { app, open } = await serve(t, { authHandler: ({ query }) => new Promise<string>(resolve => { answers.push(() => resolve(query['user'] as string)) }) })
  const asked = open('/sse?user=ada')
  await until(() => answers.length === 1)
  await app.sse.disconnectUser('ada')
  answers[0]!()
  t.equal((await asked).status, 401)
})

t.test('so is what the application knew before the log was open', async t => {
  const broker = memoryBroker()
  const openLog = broker.open.bind(broker)
  let opening: () => void = () => {}
  broker.open = async (...given) => {
    await new Promise<void>(resolve => { opening = resolve })
    await openLog(...given)
  }
  const manager = new SSEManager({ broker })
  const codes: string[] = []
  const server = createServer((request, response) => {
    manager.createConnection({ request, response, user: { userId: 'ada' } }).catch(error => {
      codes.push(error.code)
      manager.refuse({ request, response }, error)
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    await manager.close()
    server.close()
  })
  const asked = openURL(t, `http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  await once(server, 'request')
  t.equal(await manager.disconnectUser('ada'), 0)
  opening()
  const stream = await asked
  t.teardown(() => stream.close())
  t.equal(stream.status, 401)
  t.strictSame(codes, ['SSE_ERR_UNAUTHENTICATED'])
})

t.test('a user who is disconnected again is remembered for longer', t => {
  const disconnections = new DisconnectedUsers()
  disconnections.add('ada')
  for (let i = 0; i < 9_999; i++) disconnections.add(`user ${i}`)
  const since = disconnections.moment
  disconnections.add('ada')
  disconnections.add('one more')
  t.ok(disconnections.hit('ada', since) && !disconnections.isUnsure('ada', since))
  t.notOk(disconnections.hit('grace', since), 'forgotten was the one who was disconnected first')
  t.end()
})

t.test('who was disconnected is remembered for ten thousand users; beyond that whoever came before is taken for one of them', t => {
  const disconnections = new DisconnectedUsers()
  const start = disconnections.moment
  disconnections.add('ada')
  const later = disconnections.moment
  t.strictSame([disconnections.hit('ada', start), disconnections.hit('ada', later), disconnections.hit('grace', start)], [true, false, false])
  for (let i = 0; i < 9_999; i++) disconnections.add(`user ${i}`)
  t.strictSame([disconnections.hit('ada', start), disconnections.hit('ada', later), disconnections.hit('grace', start)], [true, false, false])
  disconnections.add('one more')
  t.strictSame([disconnections.hit('ada', start), disconnections.hit('ada', later), disconnections.hit('grace', start)], [true, false, true])
  t.notOk(disconnections.hit('grace', disconnections.moment))
  const before = disconnections.moment
  disconnections.miss()
  t.strictSame(['ada', 'new'].map(user => [disconnections.hit(user, before), disconnections.isUnsure(user, before)]), [[true, true], [true, true]], 'some may have been missed')
  disconnections.add('new')
  t.strictSame(['new', 'ada'].map(user => [disconnections.hit(user, before), disconnections.isUnsure(user, before)]), [[true, false], [true, true]], 'one more call does not make the missed ones known')
  t.notOk(disconnections.hit('ada', disconnections.moment))
  t.end()
})
