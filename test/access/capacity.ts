import Fastify, { type FastifyReply, type FastifyRequest, type FastifyServerOptions } from 'fastify'
import { get, IncomingMessage, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Capacity } from '../../lib/access/capacity.js'
import ssePlugin, { SSEManager, type SSEOptions } from '../../lib/index.js'
import { openStream, type TestStream } from '../../lib/testing/index.js'
import { serve, type Service } from '../helpers/app.js'
import { SSEClient, type ClientOptions } from '../helpers/sse.js'
import { until } from '../helpers/wait.js'

const refused = (t: Test, client: SSEClient | TestStream, status: number, code: string, message = '') => t.match([client.status, ('answer' in client ? client.answer : client.body).code], [status, code], message)

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
      await until(() => gates.length === N - 1, undefined, 'the reservation of the one that was refused')
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

t.test('no reservation is lost: authentication that fails, handlers that throw, heads that are never sent, other answers, HEAD, pipelines, inject', async t => {
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
  for (const client of both) t.ok((await client.ready()).isStream, 'both reservations are there')
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
  t.ok((await grace.ready()).isStream, 'others have reservations of their own')
  clients.find(({ isStream }) => isStream)!.close()
  await until(() => app.sse.connectionCount === 2)
  const again = dial()
  ;(await until(() => gates.shift()))('ada')
  t.ok((await again.ready()).isStream)
})

t.test('connections from one address', async t => {
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
    t.ok((await next.ready()).isStream, 'and takes no reservation')
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
    // All reservations are there, of everybody.
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
      const reservation = capacity.take(`192.0.2.${i % 5}`)!
      reservation.assign(i % 2 === 0 ? null : `user${i % 9}`)
      reservation.assign(`user${i % 4}`)
      reservation.leave()
      reservation.leave()
    }
    t.strictSame([capacity.taken, capacity.perUser.size, capacity.perAddress.size], [0, 0, 0])
    const reservations = [capacity.take('192.0.2.1')!, capacity.take('192.0.2.1')!]
    t.throws(() => capacity.take('192.0.2.1'), { code: 'SSE_ERR_TOO_MANY_IP_CONNECTIONS' })
    reservations.push(capacity.take('192.0.2.2')!)
    t.throws(() => capacity.take('192.0.2.3'), { code: 'SSE_ERR_TOO_MANY_CONNECTIONS' })
    reservations[0]!.assign('ada')
    reservations[1]!.assign('ada')
    t.throws(() => reservations[2]!.assign('ada'), { code: 'SSE_ERR_TOO_MANY_USER_CONNECTIONS' })
    reservations[0]!.assign('grace')
    reservations[2]!.assign('ada')
    for (const reservation of reservations) reservation.leave()
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
    t.equal(clients.filter(({ isStream }) => isStream).length, 40, 'all reservations are there, and not one more')
    t.equal(clients.find(({ isStream }) => !isStream)!.status, 503)
  })
})

t.test('a request has one reservation, whoever asks for it and however often', async t => {
  const limits = { maxConnections: 1, maxConnectionsPerUser: 1, maxConnectionsPerIp: 1 }
  t.test('a route with the option that opens its stream by createConnection', async t => {
    const { app } = await serve(t, { authHandler: () => 'ada', ...limits }, {}, app => {
      app.get('/plain', { sse: true }, async (request, reply) => {
        reply.hijack()
        await app.sse.createConnection({ request: request.raw, response: reply.raw, user: request.sseUser })
      })
    })
    const stream = await openStream(app, '/plain', { test: t })
    t.equal(app.sse.connectionCount, 1)
    const second = await openStream(app, '/plain', { test: t, allowRefusal: true }).catch((error: unknown) => error)
    t.match(second, { status: 200, isOpen: false }, 'refused by a short stream')
    await stream.close()
    t.ok((await openStream(app, '/plain', { test: t })).isOpen)
  })

  t.test('two calls side by side, of which the second is refused before or after the first has its stream', async t => {
    for (const [subscription, code] of [['not a topic!', 'SSE_ERR_INVALID_SUBSCRIPTION'], ['late', 'SSE_ERR_HEAD_ALREADY_SENT']] as const) {
      const allow: Record<string, () => void> = {}
      const second: Promise<unknown>[] = []
      const authorizeSubscription: SSEOptions['authorizeSubscription'] = ({ subscriptionId }) => new Promise(resolve => { allow[subscriptionId] = () => resolve(true) })
      const { app } = await serve(t, { authHandler: () => 'ada', authorizeSubscription, ...limits }, {}, app => {
        app.get('/two', { sse: true }, async (_request, reply) => {
          const first = reply.sse({ subscriptions: ['a'] })
          second.push(reply.sse({ subscriptions: [subscription] }).catch((error: { code: string }) => error.code))
          await first
        })
      })
      const opening = openStream(app, '/two', { test: t })
      await until(() => second.length === 1)
      if (subscription !== 'late') t.equal(await second[0], code)
      allow['a']!()
      t.ok((await opening).isOpen)
      allow['late']?.()
      t.equal(await second[0], code)
      t.match(await openStream(app, '/two', { test: t, allowRefusal: true }), { isOpen: false }, 'the first is counted')
      t.equal(app.sse.connectionCount, 1)
    }
  })

  t.test('a second call after the stream has begun does not free it; a call after a refusal is counted', async t => {
    const errors: unknown[] = []
    const { app } = await serve(t, { authHandler: () => 'ada', ...limits }, {}, app => {
      app.get('/again', { sse: true }, async (_request, reply) => {
        await reply.sse()
        await reply.sse().catch((error: unknown) => errors.push(error))
      })
      app.get('/retry', { sse: true }, async (_request, reply) => {
        await reply.sse({ subscriptions: ['not a topic!'] }).catch((error: unknown) => errors.push(error))
        await reply.sse()
      })
    })
    for (const path of ['/again', '/retry']) {
      const stream = await openStream(app, path, { test: t })
      await until(() => errors.length > 0)
      errors.length = 0
      t.match(await openStream(app, path, { test: t, allowRefusal: true }), { isOpen: false }, path)
      t.equal(app.sse.connectionCount, 1)
      await stream.close()
    }
  })

  t.test('a request that need not become a stream takes a reservation when it does', async t => {
    const { app, url } = await serve(t, { authHandler: () => 'ada', ...limits }, {}, app => {
      app.post('/publish', { sse: true }, async () => ({ published: true }))
      app.post('/answer', { sse: true }, async (_request, reply) => { await reply.sse() })
    })
    const stream = await openStream(app, '/sse', { test: t })
    t.strictSame(await (await fetch(`${url}/publish`, { method: 'POST' })).json(), { published: true }, 'while the user and the node are at their limits')
    t.equal((await fetch(`${url}/answer`, { method: 'POST' })).status, 503)
    await stream.close()
    const answer = await openStream(app, '/answer', { method: 'POST', test: t })
    t.match(await openStream(app, '/sse', { test: t, allowRefusal: true }), { isOpen: false })
    await answer.close()
  })
})

t.test('a client that does not take a stream is not authenticated for one, and keeps its ticket', async t => {
  let asked = 0
  const { app, url } = await serve(t, { ticketSecret: 'x'.repeat(32), authHandler: () => { asked++; return 'ada' } }, {}, app => {
    app.get('/bare', async (_request, reply) => { await reply.sse() })
  })
  const headers = { accept: 'text/html' }
  t.equal((await fetch(`${url}/bare`, { headers })).status, 406)
  t.equal(asked, 0)
  for (const path of ['/bare', '/sse']) {
    const ticket = app.sse.issueTicket({ userId: 'grace' })
    t.ok((await fetch(`${url}${path}?ticket=${ticket}`, { headers })).status >= 400)
    const stream = await openStream(app, `${path}?ticket=${ticket}`, { test: t })
    t.equal(app.sse.getConnectionsByUser('grace').length, 1, path)
    await stream.close()
  }
})
