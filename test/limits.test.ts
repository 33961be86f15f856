import { createServer, get, IncomingMessage, ServerResponse } from 'node:http'
import { Socket, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import rateLimit from '@fastify/rate-limit'
import Fastify, { type FastifyReply, type FastifyRequest, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import { EventSource } from 'undici'
import { addressOf } from '../lib/access/address.js'
import { Capacity } from '../lib/access/capacity.js'
import ssePlugin, { EventPriority, memoryBroker, SSEManager, type SSEOptions } from '../lib/index.js'
import { block, serve, type Service } from './helpers/app.js'
import { SSEClient, type ClientOptions } from './helpers/sse.js'
import { until } from './helpers/wait.js'

// Every bound, at the bound and one beyond it; and how a client is told.

const STREAM = { accept: 'text/event-stream' }
const refused = (t: Test, client: SSEClient, status: number, code: string, message = '') => t.match([client.status, client.answer.code], [status, code], message)

interface Gated {
  service: Service
  /** Those who wait for their authentication, in order of arrival. */
  gates: ((user: string | null) => void)[]
  dial (options?: ClientOptions, path?: string): SSEClient
  asked (): number
}

/** A service whose authentication takes as long as the test likes. */
async function gated (t: Test, options: SSEOptions, server: FastifyServerOptions = {}): Promise<Gated> {
  const gates: Gated['gates'] = []
  let asked = 0
  const service = await serve(t, {
    requireAuthentication: true,
    authHandler: () => {
      asked++
      return new Promise(resolve => { gates.push(resolve) })
    },
    ...options
  }, server, app => {
    app.get('/bare', async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() })
    app.get('/throws', { sse: true }, async () => { throw new Error('broken') })
    app.get('/headless', { sse: true, onSend: async () => { throw new Error('broken') } }, async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() })
    app.get('/other', { sse: true }, async () => ({ no: 'stream' }))
  })
  const clients: SSEClient[] = []
  t.teardown(() => { for (const client of clients) client.close() })
  return {
    service,
    gates,
    asked: () => asked,
    dial (options = {}, path = '/sse') {
      const client = new SSEClient(service.url + path, options)
      clients.push(client)
      return client
    }
  }
}

t.test('connections in total: exact, counted before anybody is authenticated', async t => {
  const N = 5
  for (const path of ['/sse', '/bare']) {
    await t.test(path, async t => {
      const { service: { app }, gates, dial, asked } = await gated(t, { maxConnections: N })
      const first = Array.from({ length: N }, () => dial({}, path))
      await until(() => gates.length === N)
      const beyond = await Promise.all(Array.from({ length: 20 }, () => dial({}, path).ready()))
      for (const client of beyond) refused(t, client, 503, 'SSE_ERR_TOO_MANY_CONNECTIONS')
      t.equal(asked(), N, 'nothing slow is done for those beyond')

      gates.shift()!('ada')
      gates.shift()!(null)
      const [in1, out] = await Promise.all([first[0]!.ready(), first[1]!.ready()])
      t.ok(in1!.isStream)
      refused(t, out!, 401, 'SSE_ERR_UNAUTHENTICATED')
      const next = dial({}, path)
      await until(() => gates.length === N - 1, undefined, 'the seat of the one that was refused')
      refused(t, await dial({}, path).ready(), 503, 'SSE_ERR_TOO_MANY_CONNECTIONS')

      // One leaves while it is authenticated.
      first[2]!.close()
      const another = await until(async () => {
        const client = dial({}, path)
        await until(() => client.status === 503 || gates.length === N)
        return client.status === 503 ? null : client
      })
      for (const gate of gates.splice(0)) gate('ada')
      await Promise.all([first[3], first[4], next, another].map(client => client!.ready()))
      t.ok([first[3], first[4], next, another].every(client => client!.isStream))
      await until(() => app.sse.connectionCount === N)
      refused(t, await dial({}, path).ready(), 503, 'SSE_ERR_TOO_MANY_CONNECTIONS')
      in1!.close()
      await until(() => app.sse.connectionCount === N - 1)
      const last = dial({}, path)
      ;(await until(() => gates.shift()))('ada')
      t.ok((await last.ready()).isStream)
    })
  }
})

t.test('no seat is lost: authentication that fails, handlers that throw, heads that are never sent, other answers, HEAD, pipelines, inject', async t => {
  const { service: { app, url }, gates, dial } = await gated(t, { maxConnections: 2, maxConnectionsPerUser: 2, maxConnectionsPerIp: 2, stallTimeoutMs: 0 })
  const answer = async (user: string | null | Error) => {
    const gate = await until(() => gates.shift())
    if (user instanceof Error) gate(Promise.reject(user) as never)
    else gate(user)
  }
  for (let round = 0; round < 3; round++) {
    for (const [path, user, status] of [['/sse', null, 401], ['/sse', new Error('down'), 500], ['/throws', 'ada', 500], ['/headless', 'ada', 500], ['/other', 'ada', 200]] as const) {
      const client = dial({ headers: { connection: 'close' } }, path)
      await answer(user)
      await client.ready()
      t.equal(client.status, status, path)
      await until(() => client.closed)
    }
    const head = dial({ method: 'HEAD', headers: { connection: 'close' } })
    await answer('ada')
    await until(() => head.closed)
    t.equal(head.status, 200)
    t.equal((await dial({ headers: { accept: 'text/html', 'sec-fetch-site': 'cross-site', connection: 'close' } }).ready()).status, 403)
    const html = dial({ headers: { accept: 'text/html', connection: 'close' } })
    await answer('ada')
    t.equal((await html.ready()).status, 406)

    const gone = dial()
    await until(() => gates.length === 1)
    gone.reset()
    await until(() => gone.closed)
    await answer('ada')
    // Two in one packet: the second waits for a socket that closes first.
    const pipeline = dial()
    pipeline.socket.write('GET /sse HTTP/1.1\r\nhost: x\r\n\r\n')
    await until(() => gates.length === 2)
    pipeline.close()
    await answer('ada')
    await answer('ada')

    await until(() => new Promise<boolean>(resolve => { app.server.getConnections((_error, count) => resolve(count === 0)) }))
    const leave = new AbortController()
    const injected = app.inject({ url: '/sse', payloadAsStream: true, signal: leave.signal }).then(response => response)
    await answer('ada')
    t.equal((await injected).statusCode, 200)
    leave.abort()
    const refusedHere = app.inject({ url: '/sse' }).then(response => response)
    await answer(null)
    t.equal((await refusedHere).statusCode, 401)
    await until(() => app.sse.connectionCount === 0)
  }
  const both = [dial(), dial()]
  await answer('ada')
  await answer('ada')
  for (const client of both) t.ok((await client.ready()).isStream, 'both seats are there')
  refused(t, await SSEClient.open(`${url}/sse`, { headers: { connection: 'close' } }), 503, 'SSE_ERR_TOO_MANY_CONNECTIONS')
})

t.test('connections of one user: counted before the handler and before subscriptions are authorized', async t => {
  const { service: { app }, gates, dial } = await gated(t, { maxConnectionsPerUser: 2, authorizeSubscription: () => true })
  const clients = Array.from({ length: 4 }, () => dial())
  await until(() => gates.length === 4)
  for (const gate of gates.splice(0)) gate('ada')
  await Promise.all(clients.map(client => client.ready()))
  t.strictSame(clients.map(({ status }) => status).sort(), [200, 200, 429, 429])
  refused(t, clients.find(({ status }) => status === 429)!, 429, 'SSE_ERR_TOO_MANY_USER_CONNECTIONS')
  const grace = dial()
  ;(await until(() => gates.shift()))('grace')
  t.ok((await grace.ready()).isStream, 'others have seats of their own')
  clients.find(({ isStream }) => isStream)!.close()
  await until(() => app.sse.connectionCount === 2)
  const again = dial()
  ;(await until(() => gates.shift()))('ada')
  t.ok((await again.ready()).isStream)
})

t.test('connections from one address', async t => {
  for (const [ip, address] of [
    ['192.0.2.7', '192.0.2.7'], ['::ffff:192.0.2.7', '192.0.2.7'], ['::FFFF:192.0.2.7', '192.0.2.7'], ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'], ['2001:0DB8:0001:0002::1', '2001:db8:1:2::/64'],
    ['2001:db8::1', '2001:db8:0:0::/64'], ['::1', '0:0:0:0::/64'], ['fe80::1%eth0', 'fe80:0:0:0::/64'], ['64:ff9b::192.0.2.7', '64:ff9b:0:0::/64'], ['', ''],
    // With a port, as Azure writes them; in brackets; with a zone; IPv4 in every notation of IPv6.
    ['192.0.2.7:1111', '192.0.2.7'], ['192.0.2.7:65535', '192.0.2.7'], ['[2001:db8:1:2::1]:443', '2001:db8:1:2::/64'], ['[2001:db8:1:2::1]', '2001:db8:1:2::/64'], ['[::ffff:192.0.2.7]:80', '192.0.2.7'],
    ['[fe80::1%eth0]:80', 'fe80:0:0:0::/64'], ['::ffff:c000:0207', '192.0.2.7'], ['0:0:0:0:0:ffff:192.0.2.7', '192.0.2.7'], ['0000:0000:0000:0000:0000:FFFF:C000:0207', '192.0.2.7'], ['::ffff:192.0.2.7%1', '192.0.2.7'],
    ['::', '0:0:0:0::/64'], ['1::', '1:0:0:0::/64'], ['1:2:3:4:5:6:7::', '1:2:3:4::/64'], ['1:2:3:4:5:6:192.0.2.7', '1:2:3:4::/64'],
    // What is no address.
    ...['unknown', '_hidden', '192.0.2', '192.0.2.7.1', '192.0.2.256', '192.0.2.07', '192.0.2.7:', '192.0.2.7:x', ':', ':::', '1::2::3', '1:2:3:4:5:6:7', '1:2:3:4:5:6:7:8:9', '1:2:3:4:5:6:7::8', 'g::1', '12345::', '[::1', '::1]', '[]', '[192.0.2.7]x', '::192.0.2.7:1', '::256.0.2.7', 'localhost', ' ', '192.0.2.7, 192.0.2.8'].map(text => [text, ''])
  ]) t.equal(addressOf(ip!), address, ip)
  t.equal(addressOf(undefined), '')

  const from = (ip: string): ClientOptions => ({ headers: { 'x-forwarded-for': ip, connection: 'close' } })
  const options = { maxConnectionsPerIp: 2 }
  await t.test('as the proxy tells it, when it is trusted', async t => {
    const { open } = await serve(t, options, { trustProxy: true })
    const status = async (ip: string) => (await open('/sse', from(ip))).status
    t.strictSame([await status('192.0.2.1'), await status('::ffff:192.0.2.1'), await status('192.0.2.1'), await status('192.0.2.2')], [200, 200, 429, 200])
    t.strictSame([await status('2001:db8::1'), await status('2001:db8::ffff:1'), await status('2001:db8::2'), await status('2001:db8:0:1::1')], [200, 200, 429, 200], 'IPv6 by its /64')
    t.strictSame([await status('192.0.2.9:1111'), await status('192.0.2.9:2222'), await status('192.0.2.9:3333'), await status('[2001:db8:9::1]:1'), await status('[2001:db8:9::2]:2'), await status('2001:db8:9::3')], [200, 200, 429, 200, 200, 429], 'a port is no part of it')
    t.strictSame([await status('unknown'), await status('_a'), await status('_b')], [200, 200, 429], 'what is no address counts as one: no text is a way around the limit')
  })
  await t.test('clients without an address: on a Unix socket, and gone already', async t => {
    for (const [trustProxy, third] of [['loopback', 429], [true, 200]] as const) {
      const app = Fastify({ trustProxy })
      await app.register(ssePlugin, { ...options, path: '/sse' })
      app.get('/bare', async (_request, reply) => { await reply.sse() })
      t.teardown(() => app.close())
      const socketPath = join(tmpdir(), `sse-${process.pid}-${trustProxy}.sock`)
      await app.listen({ path: socketPath })
      const status = (path: string, address: string) => new Promise<number>((resolve, reject) => {
        const request = get({ socketPath, path, agent: false, headers: { 'x-forwarded-for': address } }, response => {
          t.teardown(() => response.destroy())
          resolve(response.statusCode!)
        })
        request.on('error', reject)
      })
      t.strictSame([await status('/sse', '192.0.2.1'), await status('/bare', '192.0.2.2'), await status('/sse', '192.0.2.3'), await status('/bare', '192.0.2.4')], [200, 200, third, third], String(trustProxy))
      t.equal([...app.sse.connections()][0]!.clientInfo.ip, trustProxy === true ? '192.0.2.1' : '')
    }

    // Gone while a hook of the application was waiting: what is found out about it then is of no use, and no error.
    let arrived = 0
    let go: () => void = () => {}
    const gate = new Promise<void>(resolve => { go = resolve })
    const errors: string[] = []
    const { app, url } = await serve(t, options, { logger: { level: 'error', stream: { write: line => { errors.push(line) } } } }, app => {
      app.addHook('onRequest', async () => {
        arrived++
        await gate
      })
    })
    const clients = Array.from({ length: 5 }, () => new SSEClient(`${url}/sse`))
    await until(() => arrived === 5)
    for (const client of clients) client.reset()
    await until(() => new Promise<boolean>(resolve => { app.server.getConnections((_error, count) => resolve(count === 0)) }))
    go()
    const next = new SSEClient(`${url}/sse`)
    t.teardown(() => next.close())
    t.ok((await next.ready()).isStream, 'and takes no seat')
    t.strictSame(errors, [])
  })
  await t.test('whatever a client says, when it is not', async t => {
    const { app, open } = await serve(t, options)
    const clients = [await open('/sse', from('192.0.2.1')), await open('/sse', from('192.0.2.2')), await open('/sse', from('192.0.2.3'))]
    t.strictSame(clients.map(({ status }) => status), [200, 200, 429])
    refused(t, clients[2]!, 429, 'SSE_ERR_TOO_MANY_IP_CONNECTIONS')
    clients[0]!.close()
    await until(() => app.sse.connectionCount === 1)
    t.ok((await open('/sse', from('192.0.2.3'))).isStream)
  })
})

t.test('clients come and go by the thousand, and nothing of them is left', async t => {
  await t.test('10,000 as responses of node:http without a network', async t => {
    let n = 0
    const sse = new SSEManager({
      maxConnections: 50,
      maxConnectionsPerUser: 50,
      maxConnectionsPerIp: 50,
      maxSubscriptionsPerConnection: 2,
      requireAuthentication: true,
      authHandler: async () => {
        if (++n % 7 === 0) throw new Error('no database')
        return n % 5 === 0 ? null : `user${n % 3}`
      },
      authorizeSubscription: async ({ subscriptionId }) => subscriptionId !== 'no'
    }, { error: () => {}, warn: () => {}, info: () => {}, debug: () => {} })
    t.teardown(() => sse.close())
    const outcomes: Record<string, number> = {}
    const cycle = async (i: number): Promise<void> => {
      const request = new IncomingMessage(new Socket())
      request.method = 'GET'
      request.httpVersionMajor = 1
      request.httpVersionMinor = 1
      if (i % 11 === 0) request.headers.accept = 'text/html'
      const response = new ServerResponse(request)
      const leaving = i % 13 === 0
      if (leaving) setImmediate(() => response.destroy())
      let outcome = 'stream'
      try {
        const connection = await sse.createConnection({ request, response, subscriptions: i % 17 === 0 ? ['no'] : i % 19 === 0 ? ['a', 'b', 'c'] : ['a', 'b:*'] })
        if (i % 23 === 0) connection.close('kicked')
      } catch (error) {
        outcome = (error as { code: string }).code
      }
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
      response.emit('close')
    }
    for (let i = 0; i < 10_000; i += 60) await Promise.all(Array.from({ length: Math.min(60, 10_000 - i) }, (_, k) => cycle(i + k)))
    t.equal(Object.values(outcomes).reduce((sum, count) => sum + count, 0), 10_000)
    for (const outcome of ['stream', 'SSE_ERR_NOT_ACCEPTABLE', 'SSE_ERR_UNAUTHENTICATED', 'SSE_ERR_AUTHENTICATION_FAILED', 'SSE_ERR_SUBSCRIPTION_FORBIDDEN', 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS', 'SSE_ERR_TOO_MANY_CONNECTIONS']) t.ok(outcomes[outcome]! > 50, `${outcome}: ${outcomes[outcome]}`)
    t.match(sse.stats(), { connections: 0, users: 0, subscriptions: 0, queuedBytes: 0 })
    // All seats are there, of everybody.
    const responses: ServerResponse[] = []
    n = 0
    let open = 0
    for (let i = 0; open < 50; i++) {
      const request = new IncomingMessage(new Socket())
      request.method = 'GET'
      const response = new ServerResponse(request)
      responses.push(response)
      await sse.createConnection({ request, response, user: { userId: 'ada' } }).then(() => { open++ })
    }
    const request = new IncomingMessage(new Socket())
    request.method = 'GET'
    await t.rejects(sse.createConnection({ request, response: new ServerResponse(request), user: { userId: 'ada' } }), { code: 'SSE_ERR_TOO_MANY_CONNECTIONS' })
    for (const response of responses) response.emit('close')
    t.equal(sse.connectionCount, 0)
  })

  await t.test('100,000 by the counters themselves', async t => {
    const capacity = new Capacity({ maxConnections: 3, maxConnectionsPerUser: 2, maxConnectionsPerIp: 2 })
    for (let i = 0; i < 100_000; i++) {
      const seat = capacity.take(`192.0.2.${i % 5}`)!
      seat.assign(i % 2 === 0 ? null : `user${i % 9}`)
      seat.assign(`user${i % 4}`)
      seat.leave()
      seat.leave()
    }
    t.strictSame([capacity.taken, capacity.perUser.size, capacity.perAddress.size], [0, 0, 0])
    const seats = [capacity.take('192.0.2.1')!, capacity.take('192.0.2.1')!]
    t.throws(() => capacity.take('192.0.2.1'), { code: 'SSE_ERR_TOO_MANY_IP_CONNECTIONS' })
    seats.push(capacity.take('192.0.2.2')!)
    t.throws(() => capacity.take('192.0.2.3'), { code: 'SSE_ERR_TOO_MANY_CONNECTIONS' })
    seats[0]!.assign('ada')
    seats[1]!.assign('ada')
    t.throws(() => seats[2]!.assign('ada'), { code: 'SSE_ERR_TOO_MANY_USER_CONNECTIONS' })
    seats[0]!.assign('grace')
    seats[2]!.assign('ada')
    for (const seat of seats) seat.leave()
    t.strictSame([capacity.taken, capacity.perUser.size, capacity.perAddress.size], [0, 0, 0])
    t.equal(new Capacity({ maxConnections: 0, maxConnectionsPerUser: 0, maxConnectionsPerIp: 0 }).take('192.0.2.1'), null, 'what is not limited is not counted')
  })

  await t.test('600 on real sockets', async t => {
    const { app, url } = await serve(t, { maxConnections: 40, maxConnectionsPerUser: 40, maxConnectionsPerIp: 40 })
    let streams = 0
    const come = async (i: number): Promise<void> => {
      const client = new SSEClient(`${url}/sse?user=ada`, { headers: i % 5 === 0 ? { accept: 'text/html' } : {} })
      if (i % 3 === 0) client.reset()
      else await client.ready()
      if (client.isStream) streams++
      client.close()
      await until(() => client.closed)
    }
    for (let i = 0; i < 600; i += 50) await Promise.all(Array.from({ length: 50 }, (_, k) => come(i + k)))
    await until(() => app.sse.connectionCount === 0)
    t.ok(streams > 200, `${streams} streams`)
    const clients = await Promise.all(Array.from({ length: 41 }, () => SSEClient.open(`${url}/sse?user=ada`)))
    t.teardown(() => { for (const client of clients) client.close() })
    t.equal(clients.filter(({ isStream }) => isStream).length, 40, 'all seats are there, and not one more')
    t.equal(clients.find(({ isStream }) => !isStream)!.status, 503)
  })
})

t.test('subscriptions of a connection and bytes of an event, at the bound and beyond', async t => {
  const service = await serve(t, { maxSubscriptionsPerConnection: 3, maxEventBytes: 100 })
  const { app, join } = service
  await t.rejects(join('ada', ['a', 'b', 'c', 'd']), { message: /SSE_ERR_TOO_MANY_SUBSCRIPTIONS/ })
  const { client, connection } = await join('ada', ['a', 'b', 'b'])
  await connection.addSubscription('c')
  await connection.addSubscription('c')
  await t.rejects(connection.addSubscription('d'), { code: 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS' })
  // Many at once: none slips through between question and answer.
  await connection.removeSubscription('c')
  const results = await Promise.allSettled(['d', 'e', 'f', 'g'].map(topic => connection.addSubscription(topic)))
  t.equal(results.filter(({ status }) => status === 'fulfilled').length, 1)
  t.equal(connection.subscriptions.size, 3)
  await app.sse.broadcastEvent({ data: 'ü'.repeat(50) })
  await t.rejects(app.sse.broadcastEvent({ data: 'ü'.repeat(50) + 'x' }), { code: 'SSE_ERR_EVENT_TOO_LARGE', statusCode: 413 })
  t.throws(() => connection.sendEvent({ data: 'x'.repeat(101) }), { code: 'SSE_ERR_EVENT_TOO_LARGE' })
  t.ok(connection.sendEvent({ data: 'x'.repeat(100) }))
  await client.waitFor('message', 2)
  // All nodes read and keep whom an event is for as well: 32 bytes and the id itself.
  for (const list of ['userIds', 'subscriptionIds', 'clientIds', 'exceptClientIds']) {
    await app.sse.broadcastEvent({ data: 'x'.repeat(33) }, { [list]: ['y'.repeat(2), 'z'] })
    await t.rejects(app.sse.broadcastEvent({ data: 'x'.repeat(34) }, { [list]: ['y'.repeat(2), 'z'] }), { code: 'SSE_ERR_EVENT_TOO_LARGE', message: /101 bytes/ }, list)
  }
  // As it is written: a name, a key, and six letters more for each line after the first.
  for (const [size, event] of [[100, { event: 'abcdé', key: 'kkkk', data: 'x'.repeat(90) }], [100, { data: '\n'.repeat(14) + 'xx' }], [98, { data: '\r\n'.repeat(14) }], [98, { data: '\r'.repeat(14) }], [100, { data: ['\n', 'x'.repeat(91)] }]] as const) {
    await app.sse.broadcastEvent(event)
    const longer = (more: number) => ({ ...event, data: typeof event.data === 'string' ? event.data + 'x'.repeat(more) : [event.data[0] + 'x'.repeat(more), event.data[1]] })
    await app.sse.broadcastEvent(longer(100 - size))
    await t.rejects(app.sse.broadcastEvent(longer(101 - size)), { code: 'SSE_ERR_EVENT_TOO_LARGE', message: /101 bytes/ })
    t.throws(() => connection.sendEvent(longer(101 - size)), { code: 'SSE_ERR_EVENT_TOO_LARGE' })
  }
  const many = Array.from({ length: 1_000_000 }, (_, i) => `user-${i}`)
  await t.rejects(app.sse.broadcastToUsers({ data: 'x' }, many), { code: 'SSE_ERR_EVENT_TOO_LARGE' })
})

t.test('events and bytes of a replay, at the bound and beyond', async t => {
  const publish = async ({ app }: Service, n: number, priority: EventPriority = EventPriority.NORMAL) => { await app.sse.broadcastEvent({ event: 'x', data: `${n}`.padStart(50, '0'), priority }) }
  const numbers = (client: SSEClient) => client.named('x').map(({ data }) => Number(data))
  const back = async (service: Service, cursor: string) => {
    const { client, connection } = await service.join(null, [], { cursor })
    await until(() => connection.isConnected && !connection.stats().lagging)
    await service.app.sse.broadcastEvent({ event: 'end', data: '' })
    await client.waitFor('end')
    const gaps = client.json('sse:gap').map(({ reason }) => reason)
    const seen = numbers(client)
    client.close()
    return { seen, gaps }
  }
  await t.test('maxReplayEvents', async t => {
    const service = await serve(t, { maxReplayEvents: 10 })
    const { client } = await service.join()
    const start = client.lastEventId
    for (let n = 1; n <= 10; n++) await publish(service, n)
    t.strictSame(await back(service, start), { seen: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], gaps: [] })
    t.strictSame(await back(service, start), { seen: [], gaps: ['limit'] }, 'the last event of the run before was one more')
  })
  await t.test('maxReplayBytes', async t => {
    // What the log sends for the first hundred of `publish`; a log's own name has eight letters.
    const bytes = Array.from({ length: 100 }, (_, i) => `id: xxxxxxxx.${(i + 1).toString(36)}\nevent: x\ndata: ${'0'.repeat(50)}\n\n`.length).reduce((sum, length) => sum + length, 0)
    for (const [maxReplayBytes, expected] of [[bytes, { seen: Array.from({ length: 100 }, (_, i) => i + 1), gaps: [] }], [bytes - 1, { gaps: ['limit'] }]] as const) {
      const service = await serve(t, { maxReplayBytes })
      const { client } = await service.join()
      const start = client.lastEventId
      for (let n = 1; n <= 100; n++) await publish(service, n)
      const result = await back(service, start)
      t.match(result, expected, `${maxReplayBytes} bytes`)
      if (maxReplayBytes < bytes) t.ok(result.seen.length < 100, 'one gap instead of the rest, then live')
    }

    const service = await serve(t, { maxReplayBytes: 1_000 })
    const slow = await service.join()
    await block(slow)
    for (let n = 0; n < 300; n++) await publish(service, n)
    slow.client.resume()
    await until(() => numbers(slow.client).length === 300)
    t.strictSame(slow.client.named('sse:gap'), [], 'a slow client that never left is not limited by it')
  })
})

t.test('concurrent replays: others wait their turn, and each gets all', async t => {
  const service = await serve(t, { maxConcurrentReplays: 2, history: { maxEvents: 5_000 } })
  const { app, join } = service
  const { client } = await join()
  for (let n = 0; n < 1_000; n++) await app.sse.broadcastEvent({ event: 'x', data: String(n) })
  const returning = await Promise.all(Array.from({ length: 60 }, () => join(null, [], { cursor: client.lastEventId })))
  await app.sse.broadcastEvent({ event: 'live', data: '' })
  for (const { client } of returning) {
    await until(() => client.named('x').length === 1_000 && client.named('live').length === 1)
    t.strictSame(client.named('x').map(({ data }) => Number(data)), Array.from({ length: 1_000 }, (_, n) => n))
    t.equal(client.named('sse:gap').length, 0)
  }
})

t.test('the age of a connection is spread by a fifth, and each comes back to where it was', async t => {
  const { app, join } = await serve(t, { maxConnectionAgeMs: 2_000, retryMs: 1_000 })
  const started = performance.now()
  const ages: number[] = []
  const joined = await Promise.all(Array.from({ length: 60 }, () => join()))
  const retries: number[] = []
  await Promise.all(joined.map(async ({ client }) => {
    await client.waitForEnd()
    ages.push(performance.now() - started)
    t.strictSame(client.json('sse:close'), [{ reason: 'max-age', reconnect: true }])
    retries.push(client.blocks.findLast(({ retry }) => retry !== null)!.retry!)
  }))
  t.ok(Math.min(...ages) >= 1_599, 'none before four fifths')
  t.ok(Math.max(...ages) - Math.min(...ages) > 100, 'not together')
  t.ok(new Set(retries).size > 30 && Math.min(...retries) >= 1_000 && Math.max(...retries) <= 2_000, 'and they do not come back together')
  t.equal(app.sse.connectionCount, 0)
})

// --- How a client is told ---

t.test('refusals', async t => {
  const full: SSEOptions = { maxConnections: 1, retryMs: 400 }
  const occupy = async (service: Service) => (await service.join()).client

  await t.test('to a client that asks for an event stream: a stream that says when to come back, and ends', async t => {
    const service = await serve(t, full)
    await occupy(service)
    const retries: number[] = []
    for (let i = 0; i < 20; i++) {
      const client = await service.open('/sse', { headers: STREAM })
      t.match([client.status, client.headers['content-type'], client.headers['cache-control']], [200, 'text/event-stream', /no-store/])
      await client.waitForEnd()
      t.strictSame(client.json('sse:error'), [{ code: 'SSE_ERR_TOO_MANY_CONNECTIONS', message: 'Too many open streams', retryable: true }])
      t.strictSame(client.blocks.map(({ id }) => id), [null, null], 'its place is left as it was')
      retries.push(client.blocks[0]!.retry!)
    }
    t.ok(retries.every(retry => retry >= 400 && retry <= 800) && new Set(retries).size > 10, `spread: ${retries}`)
    t.equal(service.app.sse.connectionCount, 1)
  })

  await t.test('to others by status, with the same code', async t => {
    const service = await serve(t, full)
    await occupy(service)
    for (const headers of [{}, { accept: '*/*' }, { accept: 'application/json, */*;q=0.1' }, { accept: 'text/event-stream;q=0, */*' }] as Record<string, string>[]) {
      const client = await service.open('/sse', { headers })
      refused(t, client, client.status === 406 ? 406 : 503, client.status === 406 ? 'SSE_ERR_NOT_ACCEPTABLE' : 'SSE_ERR_TOO_MANY_CONNECTIONS', JSON.stringify(headers))
    }
  })

  await t.test('every refusal, by each value of the option', async t => {
    const limits = { user: { maxConnectionsPerUser: 1 }, address: { maxConnectionsPerIp: 1 } }
    type Expected = 'stream' | 204 | number
    const table: [what: string, options: SSEOptions, path: string, headers: Record<string, string>, code: string, auto: Expected, status: Expected, stop: Expected][] = [
      ['too many', { maxConnections: 1 }, '/sse', {}, 'SSE_ERR_TOO_MANY_CONNECTIONS', 'stream', 503, 'stream'],
      ['too many of a user', limits.user, '/sse?user=ada', {}, 'SSE_ERR_TOO_MANY_USER_CONNECTIONS', 'stream', 429, 'stream'],
      ['too many from an address', limits.address, '/sse', {}, 'SSE_ERR_TOO_MANY_IP_CONNECTIONS', 'stream', 429, 'stream'],
      ['authentication that fails to answer', { authHandler: ({ query }) => { if (query['join'] === undefined) throw new Error('secret'); return null } }, '/sse', {}, 'SSE_ERR_AUTHENTICATION_FAILED', 'stream', 500, 'stream'],
      ['nobody', { requireAuthentication: true }, '/sse', {}, 'SSE_ERR_UNAUTHENTICATED', 401, 401, 204],
      ['a page of another site', {}, '/sse', { 'sec-fetch-site': 'cross-site' }, 'SSE_ERR_ORIGIN_FORBIDDEN', 403, 403, 204],
      ['a subscription', { path: '/ready' }, '/ready?subscription=a', {}, 'SSE_ERR_SUBSCRIPTION_FORBIDDEN', 403, 403, 204],
      ['an error of the handler', {}, '/broken', {}, '', 500, 500, 500],
      ['a 404 of the handler', {}, '/missing', {}, '', 404, 404, 204]
    ]
    for (const [what, options, path, headers, code, ...outcomes] of table) {
      for (const [i, refusals] of (['auto', 'status', 'stop'] as const).entries()) {
        const service = await serve(t, { ...options, refusals }, {}, app => {
          app.get('/broken', { sse: true }, async () => { throw new Error('secret') })
          app.get('/missing', { sse: true }, async () => { throw Object.assign(new Error('no such board'), { statusCode: 404 }) })
        })
        await service.join('ada').catch(() => {})
        const client = await service.open(path, { headers: { ...STREAM, ...headers } })
        const expected = outcomes[i]!
        if (expected === 'stream') {
          await client.waitForEnd()
          t.equal(client.status, 200)
          t.match(client.json('sse:error'), [{ code, retryable: true }], `${what}, ${refusals}`)
          t.notMatch(client.blocks.map(({ text }) => text).join(), 'secret')
        } else if (expected === 204) {
          t.strictSame([client.status, client.body], [204, ''], `${what}, ${refusals}`)
        } else {
          t.equal(client.status, expected, `${what}, ${refusals}`)
          if (code !== '') t.equal(client.answer.code, code)
        }
        client.close()
      }
    }
  })

  await t.test('of errors of the application, or of its clients of databases, neither message nor code', async t => {
    const secret = 'no_shard_available: http://elastic:hunter2@10.0.0.7:9200/orders'
    const service = await serve(t, {}, {}, app => {
      app.setErrorHandler((error, _request, reply) => { reply.code((error as { statusCode?: number }).statusCode ?? 500).send({ error: 'sorry' }) })
      const fails = (error: object) => async () => { throw error }
      app.get('/503', { sse: true }, fails(Object.assign(new Error(secret), { statusCode: 503, code: 'ES_INTERNAL_9200' })))
      app.get('/429', { sse: true }, fails(Object.assign(new Error(secret), { statusCode: 429, code: 'QUOTA_OF_HUNTER2' })))
      app.get('/plain', { sse: true }, fails({ statusCode: 503, message: secret, code: 'HUNTER2' }))
      app.get('/hook', { sse: true, preHandler: fails(Object.assign(new Error(secret), { statusCode: 503 })) }, async () => {})
      app.get('/strategy', { sse: true, onRequest: fails(Object.assign(new Error(secret), { statusCode: 503 })) }, async () => {})
      app.get('/stopping', { sse: { refusals: 'stop' } }, fails(Object.assign(new Error(secret), { statusCode: 404 })))
    })
    for (const [path, message] of [['/503', 'Service Unavailable'], ['/429', 'Too Many Requests'], ['/plain', 'Service Unavailable'], ['/hook', 'Service Unavailable'], ['/strategy', 'Service Unavailable']] as const) {
      const client = await service.open(path, { headers: STREAM })
      await client.waitForEnd()
      t.strictSame(client.json('sse:error'), [{ message, retryable: true }], path)
      t.notMatch(client.blocks.map(({ text }) => text).join(), /hunter2|ES_|elastic/i)
      t.strictSame((await service.open(path)).answer, { error: 'sorry' })
    }
    t.match(await service.open('/stopping', { headers: STREAM }), { status: 204, body: '' })
    // What a broker says of its failure, told by createConnection's own answers.
    const broker = memoryBroker()
    const sse = new SSEManager({ broker: Object.assign(broker, { open: async () => { throw new Error(secret) } }) })
    const server = createServer(async (request, response) => {
      await sse.createConnection({ request, response }).catch(error => sse.refuse({ request, response }, error))
    })
    server.listen(0, '127.0.0.1')
    await until(() => server.listening)
    t.teardown(() => server.close())
    for (const headers of [{}, STREAM]) {
      const client = await SSEClient.open(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`, { headers: { connection: 'close', ...headers } })
      await until(() => client.closed)
      t.notMatch(client.body + client.blocks.map(({ text }) => text).join(), 'hunter2')
    }
  })

  await t.test('only what an EventSource can send is refused by a stream, and each route may say otherwise', async t => {
    const service = await serve(t, { ...full, path: '/ready' }, {}, app => {
      const handler = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() }
      app.post('/post', { sse: true }, handler)
      app.put('/put', { sse: { refusals: 'stop' } }, handler)
      app.get('/status', { sse: { refusals: 'status' } }, handler)
      app.get('/stop', { sse: { refusals: 'stop', requireAuthentication: true } }, handler)
      app.get('/auto', { sse: {} }, handler)
    })
    await occupy(service)
    const answer = async (path: string, method: string, accept = 'application/json, text/event-stream') => {
      const client = await service.open(path, { method, headers: { accept, connection: 'close' } })
      return client.isStream ? 'stream' : client.status
    }
    t.strictSame([await answer('/post', 'POST'), await answer('/put', 'PUT'), await answer('/sse', 'HEAD'), await answer('/ready', 'HEAD')], [503, 503, 503, 503])
    t.equal(await answer('/post', 'POST', 'text/event-stream'), 503, 'whatever it accepts')
    t.strictSame([await answer('/status', 'GET'), await answer('/stop', 'GET'), await answer('/auto', 'GET'), await answer('/ready', 'GET')], [503, 'stream', 'stream', 'stream'])
    ;[...service.app.sse.connections()][0]!.close()
    await until(() => service.app.sse.connectionCount === 0)
    t.strictSame([await answer('/stop', 'GET'), await answer('/stop', 'GET', '*/*')], [204, 401], 'and the rest of it')

    const strict = await serve(t, { ...full, refusals: 'status' }, {}, app => {
      app.get('/auto', { sse: { refusals: 'auto' } }, async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() })
    })
    await occupy(strict)
    t.ok((await strict.open('/auto', { headers: STREAM })).isStream)
    t.equal((await strict.open('/sse', { headers: STREAM })).status, 503)
  })

  await t.test('while draining: not before the server may be back', async t => {
    const service = await serve(t, { retryMs: 200, drainMs: 2_000 })
    const { client } = await service.join()
    client.pause()
    const draining = service.app.sse.drain()
    const late = await service.open('/sse', { headers: STREAM })
    await late.waitForEnd()
    t.match(late.json('sse:error'), [{ code: 'SSE_ERR_CLOSED', retryable: true }])
    const retry = late.blocks[0]!.retry!
    t.ok(retry >= 2_000 && retry <= 4_000, String(retry))
    refused(t, await service.open('/sse'), 503, 'SSE_ERR_CLOSED')
    client.close()
    await draining
  })

  await t.test('an EventSource comes back by itself and gets in; by status it gives up for ever', async t => {
    const service = await serve(t, { maxConnections: 1, retryMs: 100 })
    const first = await occupy(service)
    const source = new EventSource(`${service.url}/sse`)
    t.teardown(() => source.close())
    let refusals = 0
    const messages: string[] = []
    source.addEventListener('sse:error', () => { refusals++ })
    source.addEventListener('message', event => { messages.push(event.data) })
    await until(() => refusals >= 2)
    const [old] = [...service.app.sse.connections()]
    first.close()
    await until(() => [...service.app.sse.connections()].some(connection => connection !== old))
    await service.app.sse.broadcastEvent({ data: 'in' })
    await until(() => messages.length === 1)

    const strict = await serve(t, { maxConnections: 1, retryMs: 100, refusals: 'status' })
    const other = await occupy(strict)
    const given = new EventSource(`${strict.url}/sse`)
    t.teardown(() => given.close())
    await until(() => given.readyState === EventSource.CLOSED)
    other.close()
    await until(() => strict.app.sse.connectionCount === 0)
    t.equal(given.readyState, EventSource.CLOSED)
  })

  await t.test('the application\'s own error handlers and hooks are where they were', async t => {
    const calls: string[] = []
    const service = await serve(t, { requireAuthentication: true, refusals: 'auto', maxConnectionsPerIp: 1 }, {}, app => {
      app.setErrorHandler((error, _request, reply) => {
        calls.push('scope')
        reply.code(418).send({ seen: (error as { code?: string }).code })
      })
      app.addHook('onError', async () => { calls.push('onError') })
      app.get('/own', {
        sse: true,
        errorHandler (error, _request, reply) {
          calls.push('route')
          reply.code(419).send({ seen: error.code })
        }
      }, async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() })
      app.get('/rethrows', { sse: true, errorHandler (error) { throw error } }, async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() })
    })
    for (const [path, status, expected] of [['/sse', 418, ['onError', 'scope']], ['/own', 419, ['onError', 'route']], ['/rethrows', 418, ['onError', 'scope']]] as const) {
      for (const headers of [{}, STREAM] as Record<string, string>[]) {
        calls.length = 0
        const client = await service.open(path, { headers })
        t.strictSame([client.status, client.answer], [status, { seen: 'SSE_ERR_UNAUTHENTICATED' }], path)
        t.strictSame(calls, expected)
        client.close()
      }
    }
    await service.join('ada')
    calls.length = 0
    const busy = await service.open('/own?user=ada', { headers: STREAM })
    await busy.waitForEnd()
    t.match(busy.json('sse:error'), [{ code: 'SSE_ERR_TOO_MANY_IP_CONNECTIONS' }])
    t.strictSame(calls, ['onError'])
  })

  await t.test('@fastify/rate-limit: how often clients connect, before they are authenticated', async t => {
    let asked = 0
    const service = await serve(t, {
      retryMs: 100,
      authHandler: () => {
        asked++
        return 'ada'
      }
    }, {}, app => {
      app.register(async scope => {
        await scope.register(rateLimit, { global: false })
        // A hook of the scope comes before those of its routes.
        scope.addHook('onRequest', scope.rateLimit({ max: 3, timeWindow: 30_000 }))
        scope.get('/limited', { sse: true }, async (_request, reply) => { await reply.sse() })
        scope.post('/publish', async () => await app.sse.broadcastEvent({ data: 'x' }))
      })
    })
    for (let i = 0; i < 3; i++) t.ok((await service.open('/limited', { headers: STREAM })).isStream)
    t.equal(asked, 3)
    const limited = await service.open('/limited', { headers: STREAM })
    await limited.waitForEnd()
    t.strictSame(limited.json('sse:error'), [{ message: 'Too Many Requests', retryable: true }])
    t.ok(limited.blocks[0]!.retry! >= 25_000, 'not before the limiter lets it in again')
    t.equal((await service.open('/limited')).status, 429)
    t.equal((await service.open('/publish', { method: 'POST' })).status, 429, 'publishing by a route is limited likewise')
    t.equal(asked, 3)
  })

  await t.test('without Fastify', async t => {
    const sse = new SSEManager({ maxConnections: 1, requireAuthentication: true, authHandler: ({ token }) => { if (token === 'broken') throw new Error('secret'); return token }, retryMs: 3_000 })
    const server = createServer(async (request, response) => {
      try {
        await sse.createConnection({ request, response })
      } catch (error) {
        sse.refuse({ request, response }, request.url === '/theirs' ? Object.assign(new TypeError('secret'), { statusCode: 503, code: 'ESECRET' }) : error)
      }
    })
    server.listen(0, '127.0.0.1')
    await until(() => server.listening)
    t.teardown(async () => {
      server.close()
      server.closeAllConnections()
      await sse.close()
    })
    const open = (path: string, headers: Record<string, string> = {}) => SSEClient.open(`http://127.0.0.1:${(server.address() as AddressInfo).port}${path}`, { headers: { connection: 'close', ...headers } })
    refused(t, await open('/'), 401, 'SSE_ERR_UNAUTHENTICATED')
    t.strictSame((await open('/')).answer, { statusCode: 401, code: 'SSE_ERR_UNAUTHENTICATED', error: 'Unauthorized', message: 'Authentication required' })
    t.strictSame((await open('/theirs')).answer, { statusCode: 500, error: 'Internal Server Error', message: 'Something went wrong' })
    const theirs = await open('/theirs', STREAM)
    t.strictSame([theirs.status, theirs.answer.message], [500, 'Something went wrong'], 'nor to a client that asks for a stream')
    const broken = await open('/', { authorization: 'Bearer broken' })
    t.notMatch(broken.body, 'secret')
    const first = await open('/', { authorization: 'Bearer ada' })
    t.ok(first.isStream)
    const busy = await open('/', { authorization: 'Bearer ada' })
    refused(t, busy, 503, 'SSE_ERR_TOO_MANY_CONNECTIONS')
    t.equal(busy.headers['retry-after'], '3')
    const stream = await open('/', { authorization: 'Bearer ada', ...STREAM })
    await until(() => stream.closed)
    t.match(stream.json('sse:error'), [{ code: 'SSE_ERR_TOO_MANY_CONNECTIONS', retryable: true }])
    first.close()
  })
})
