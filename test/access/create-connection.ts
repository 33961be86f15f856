import express from 'express'
import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import { createServer as createH2Server, type Http2Server } from 'node:http2'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { fetch } from 'undici'
import { SSEError, SSEManager, type CreateConnection, type ManagerOptions } from '../../lib/index.js'
import { connectH2, H2Stream } from '../helpers/h2.js'
import { dataOf } from '../helpers/raw.js'
import { raw } from '../helpers/reply.js'
import { until } from '../helpers/wait.js'
import { openURL } from '../helpers/app.js'

t.test('createConnection', async t => {
  const authHandler: NonNullable<ManagerOptions['authHandler']> = ({ token }) => token
  type Open = (manager: SSEManager, request: any, response: any) => Promise<void>

  const serveHttp = async (t: Test, server: Server | Http2Server): Promise<string> => {
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.teardown(() => new Promise<void>(resolve => { server.close(() => resolve()) }))
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  }

  const open: Open = async (manager, request, response) => {
    try {
      const connection = await manager.createConnection({ request, response, subscriptions: ['news'], clientInfo: { device: 'watch' } })
      connection.sendData('welcome', { user: connection.userId })
    } catch (error) {
      // Untouched: the application's own answer, head and all.
      t.equal(response.headersSent, false)
      t.strictSame(Object.keys(response.getHeaders()).filter(name => name !== 'x-powered-by'), [])
      response.writeHead((error as SSEError).statusCode, { 'content-type': 'text/plain' })
      response.end((error as SSEError).code)
    }
  }

  const plain = (manager: SSEManager): Server => createServer((request, response) => { open(manager, request, response) })
  const inExpress = (manager: SSEManager): Server => {
    const app = express()
    app.use((request, response, next) => {
      response.locals['seen'] = true
      next()
    })
    app.get('/sse', (request, response) => open(manager, request, response))
    return createServer(app)
  }

  for (const where of ['filter', 'authorizeTopic'] as const) {
    t.test(`made in ${where} with the cursor before the event that is being delivered, it receives the event`, async t => {
      let during = (): void => {}
      const manager = new SSEManager({ authorizeTopic: () => { if (where === 'authorizeTopic') during(); return true } })
      t.teardown(() => manager.close())
      await manager.open()
      const pending: Pick<CreateConnection, 'request' | 'response'>[] = []
      const url = await serveHttp(t, createServer((request, response) => { pending.push({ request, response }) }))
      const ask = async (headers: Record<string, string>) => {
        const socket = raw(t, url, { headers })
        await until(() => pending.length === 1)
        const asked = pending.pop()!
        return { socket, enter: () => manager.createConnection({ ...asked, user: null, subscriptions: ['news:**'] }) }
      }
      await (await ask({})).enter()
      const { socket, enter } = await ask({ 'last-event-id': manager.position() })
      let made: Promise<unknown> | null = null
      during = () => { made ??= enter() }
      const publish = (data: string) => manager.broadcastEvent({ data }, { subscriptionIds: ['news:1'], ...(where === 'filter' && { filter: () => { during(); return true } }) })
      await publish('first')
      await made
      await publish('second')
      await socket.waitFor('data: second')
      t.strictSame(Array.from(String(socket.bytes).matchAll(/^data: (\w+)/gm), ([, data]) => data), ['first', 'second'])
    })
  }

  t.test('a length that a middleware has set is not that of the stream', async t => {
    const manager = new SSEManager()
    const url = await serveHttp(t, createServer((request, response) => {
      response.setHeader('content-length', '5')
      manager.createConnection({ request, response })
    }))
    t.teardown(() => manager.close())
    const socket = raw(t, url, {})
    await socket.waitFor('retry: ')
    await manager.broadcastEvent({ data: 'heard' })
    await socket.waitFor('data: heard')
    t.notOk('content-length' in socket.answers[0]!.headers)
  })

  for (const [name, create] of Object.entries({ 'node:http': plain, 'Express 5': inExpress })) {
    t.test(name, async t => {
      const manager = new SSEManager({ authHandler, requireAuthentication: true, authorizeSubscription: ({ userId }) => userId !== 'eve', drainMs: 300, maxConnections: 2 })
      const url = `${await serveHttp(t, create(manager))}/sse`
      t.teardown(() => manager.close())
      const path = '/sse'
      const get = async (headers: Record<string, string>): Promise<[number, string]> => {
        const response = await fetch(url, { headers })
        return [response.status, await response.text()]
      }
      t.strictSame(await get({}), [401, 'SSE_ERR_UNAUTHENTICATED'])
      t.strictSame(await get({ authorization: 'Bearer eve' }), [403, 'SSE_ERR_SUBSCRIPTION_FORBIDDEN'])
      t.strictSame(await get({ authorization: 'Bearer ada', accept: 'text/html' }), [406, 'SSE_ERR_NOT_ACCEPTABLE'])
      t.equal(manager.connectionCount, 0)

      const socket = raw(t, url, { path, headers: { authorization: 'Bearer ada', 'user-agent': 'test/1' } })
      await socket.waitFor('welcome')
      const [answer] = socket.answers
      t.equal(answer!.status, 200)
      t.match(answer!.headers, { 'content-type': 'text/event-stream', 'transfer-encoding': 'chunked', 'x-accel-buffering': 'no' })
      t.strictSame(dataOf(answer!.body), ['{"resource":"welcome","data":{"user":"ada"}}'])
      const [connection] = manager.getConnectionsByUser('ada')
      t.match(connection!.clientInfo, { device: 'watch', ip: '127.0.0.1', userAgent: 'test/1', connectedAt: Number })
      t.equal((await manager.broadcastToSubscriptions({ event: 'headline', data: 'é' }, ['news'])).delivered, 1)
      await socket.waitFor('event: headline\ndata: é\n\n')

      // Another one leaves, a third comes in its place; a HEAD request counts for nothing.
      const second = raw(t, url, { path, headers: { authorization: 'Bearer bob' } })
      await second.waitFor('welcome')
      t.strictSame(await get({ authorization: 'Bearer cid' }), [503, 'SSE_ERR_TOO_MANY_CONNECTIONS'])
      second.close()
      await until(() => manager.connectionCount === 1)
      const head = raw(t, url, { method: 'HEAD', path, headers: { authorization: 'Bearer ada', connection: 'close' } })
      await head.waitForClose()
      t.match(head.text, /^HTTP\/1\.1 200 OK\r\n/)
      await until(() => manager.connectionCount === 1)

      // Resumed by the cursor it was told.
      const { lastEventId } = await openURL(t, url, { headers: { authorization: 'Bearer dan' } }).then(stream => {
        stream.close()
        return stream
      })
      await until(() => manager.connectionCount === 1)
      await manager.broadcastToSubscriptions({ data: 'missed' }, ['news'])
      const returning = raw(t, url, { path, headers: { authorization: 'Bearer dan', 'last-event-id': lastEventId } })
      await returning.waitFor('data: missed\n\n')

      await manager.close()
      await socket.waitForAnswers(1)
      t.match(socket.text, '"reason":"shutdown","reconnect":true')
      t.strictSame(await get({ authorization: 'Bearer ada' }), [503, 'SSE_ERR_CLOSED'])
    })
  }

  t.test('node:http2', async t => {
    const manager = new SSEManager({ authHandler, drainMs: 300 })
    const server = createH2Server((request, response) => { open(manager, request, response) })
    const url = await serveHttp(t, server)
    const session = connectH2(url)
    t.teardown(() => session.destroy())
    t.teardown(() => manager.close())
    const stream = new H2Stream(session, '/sse', { authorization: 'Bearer ada' })
    await stream.waitFor('welcome')
    t.equal(stream.headers['content-type'], 'text/event-stream')
    await manager.broadcastToUsers({ data: 'you' }, ['ada'])
    await stream.waitFor('data: you\n\n')
    t.equal(await manager.disconnectUser('ada'), 1)
    await stream.waitForClose()
    t.equal(stream.ended, true)
    t.equal(manager.connectionCount, 0)
  })

  t.test('the user that the application names is held to the rules of authHandler', async t => {
    const manager = new SSEManager({ authHandler, requireAuthentication: true, drainMs: 300 })
    const users: Record<string, unknown> = { nobody: null, number: { userId: 7 }, time: { userId: 'ada', expiresAt: NaN }, seconds: { userId: 'ada', expiresAt: Date.now() / 1000 + 60 }, expired: { userId: 'ada', expiresAt: Date.now() - 1 }, id: 'ada', user: { userId: 'ada' } }
    const url = await serveHttp(t, createServer((request, response) => {
      manager.createConnection({ request, response, user: users[request.url!.slice(1)] as { userId: string }, lastEventId: '' }).then(
        connection => connection.sendData('user', connection.userId),
        error => response.writeHead(error.statusCode).end(error.code))
    }))
    t.teardown(() => manager.close())
    const get = async (path: string) => (await raw(t, url, { path: `/${path}`, headers: { connection: 'close' } }).waitForAnswers(1))[0]!.body
    t.equal(await get('nobody'), 'SSE_ERR_UNAUTHENTICATED')
    t.equal(await get('expired'), 'SSE_ERR_UNAUTHENTICATED')
    t.equal(await get('number'), 'SSE_ERR_INVALID_USER')
    t.equal(await get('time'), 'SSE_ERR_INVALID_USER')
    t.equal(await get('seconds'), 'SSE_ERR_INVALID_USER')
    t.equal(manager.connectionCount, 0)
    for (const path of ['id', 'user']) {
      const socket = raw(t, url, { path: `/${path}` })
      await socket.waitFor('"data":"ada"')
      t.notMatch(socket.text, 'sse:gap', 'an empty cursor is none')
    }
  })

  t.test('what is not an option opens no stream: a misspelt user would be an anonymous one', async t => {
    const manager = new SSEManager({ drainMs: 300 })
    const attempts: [object, RegExp][] = [
      [{ userId: 'ada' }, /"userId" of createConnection\(\) is not an option: it has request, response, user, authData, subscriptions,/],
      [{ subscription: ['a'] }, /"subscription" of createConnection\(\) is not an option/],
      [{ requireAuthentication: true }, /"requireAuthentication"/],
      [{ user: undefined }, /"user" of createConnection\(\) is undefined: .* null for an anonymous connection/]
    ]
    const url = await serveHttp(t, createServer((request, response) => {
      const [options] = attempts[Number(request.url!.slice(1))] ?? [{}]
      manager.createConnection({ request, response, ...options }).then(() => {}, error => manager.refuse({ request, response }, error))
    }))
    t.teardown(() => manager.close())
    for (const [i, [, message]] of attempts.entries()) {
      const [answer] = await raw(t, url, { path: `/${i}`, headers: { accept: 'application/json', connection: 'close' } }).waitForAnswers(1)
      t.equal(answer!.status, 500)
      t.match(JSON.parse(answer!.body), { code: 'SSE_ERR_INVALID_OPTION', message })
    }
    t.equal(manager.connectionCount, 0)
    await raw(t, url, { path: '/none' }).waitFor('id: ')
  })

  t.test('what wraps a response may throw: that stream ends, the others go on', async t => {
    const manager = new SSEManager({ drainMs: 300 }, { error: (details, message) => { logged.push(message) }, warn () {}, info () {}, debug () {} })
    const logged: string[] = []
    const url = await serveHttp(t, createServer((request, response) => {
      if (request.url === '/broken') {
        let writes = 0
        const { write } = response
        response.write = function (this: typeof response, ...args: unknown[]) {
          if (writes++ > 0) throw new Error('broken pipe')
          return (write as (...args: unknown[]) => boolean).apply(this, args)
        } as typeof response.write
      }
      manager.createConnection({ request, response })
    }))
    t.teardown(() => manager.close())
    const broken = raw(t, url, { path: '/broken' })
    await broken.waitFor('id: ')
    const sound = raw(t, url, {})
    await sound.waitFor('id: ')
    await manager.broadcastEvent({ data: 'one' })
    await broken.waitForClose()
    await manager.broadcastEvent({ data: 'two' })
    await sound.waitFor('data: two')
    t.match(logged, [/wrapped response threw/])
    t.equal(manager.connectionCount, 1)
  })

  t.test('the user the application knows already; the same response twice; a response that has begun', async t => {
    const manager = new SSEManager({ authHandler: () => { throw new Error('not asked') }, drainMs: 300 })
    const codes: string[] = []
    const url = await serveHttp(t, createServer(async (request, response) => {
      const connect = async () => {
        try {
          const connection = await manager.createConnection({ request, response, user: request.url === '/nobody' ? null : { userId: 'ada', claims: { role: 'admin' } } })
          t.equal(connection.isAuthenticated, request.url !== '/nobody')
          if (request.url !== '/nobody') t.strictSame(connection.claims, { role: 'admin' })
        } catch (error) {
          codes.push((error as SSEError).code)
        }
      }
      if (request.url === '/begun') {
        response.writeHead(200)
        response.write('mine')
      }
      await Promise.all([connect(), connect()])
      for (const connection of manager.connections()) connection.close()
      if (request.url === '/begun') response.end()
    }))
    t.teardown(() => manager.close())
    for (const path of ['/', '/nobody']) {
      codes.length = 0
      const [answer] = await raw(t, url, { path }).waitForAnswers(1)
      t.match(answer!.body, /"reason":"closed","reconnect":false\}\n\n$/)
      t.strictSame(codes, ['SSE_ERR_HEAD_ALREADY_SENT'], path)
      await until(() => manager.connectionCount === 0)
    }
    codes.length = 0
    const [answer] = await raw(t, url, { path: '/begun' }).waitForAnswers(1)
    t.equal(answer!.body, 'mine')
    t.strictSame(codes, ['SSE_ERR_HEAD_ALREADY_SENT', 'SSE_ERR_HEAD_ALREADY_SENT'])
  })

  t.test('a client that left meanwhile', async t => {
    let asked = false
    const manager = new SSEManager({
      authHandler: async (authData, request) => {
        asked = true
        await once(request.socket, 'close')
        return 'ada'
      },
      drainMs: 300
    })
    const codes: string[] = []
    const url = await serveHttp(t, createServer((request, response) => {
      manager.createConnection({ request, response }).then(() => codes.push('opened'), error => { codes.push(error.code) })
    }))
    t.teardown(() => manager.close())
    const socket = raw(t, url, {})
    await until(() => asked)
    socket.close()
    await until(() => codes.length === 1)
    t.strictSame(codes, ['SSE_ERR_CLIENT_GONE'])
    t.equal(manager.connectionCount, 0)
  })

  t.test('a response that something has wrapped is written through the wrapper', async t => {
    const manager = new SSEManager({ drainMs: 300 })
    let seen = 0
    const url = await serveHttp(t, createServer((request, response) => {
      const { write } = response
      response.write = function (this: typeof response, ...args: unknown[]) {
        seen++
        return (write as (...args: unknown[]) => boolean).apply(this, args)
      } as typeof response.write
      manager.createConnection({ request, response })
    }))
    t.teardown(() => manager.close())
    const socket = raw(t, url, {})
    await socket.waitFor('id: ')
    await manager.broadcastEvent({ data: 'through' })
    await socket.waitFor('data: through\n\n')
    t.equal(seen, 2)
    for (const connection of manager.connections()) connection.close()
    const [answer] = await socket.waitForAnswers(1)
    t.strictSame(dataOf(answer!.body), ['through'])
  })
})
