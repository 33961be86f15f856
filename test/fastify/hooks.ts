import { type FastifyInstance, type FastifyReply, type FastifyRequest, type RouteOptions } from 'fastify'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { fetch } from 'undici'
import { type SSEConnection } from '../../lib/index.js'
import { dataOf } from '../helpers/raw.js'
import { raw, start } from '../helpers/reply.js'
import { turns, until } from '../helpers/wait.js'

const never = new Promise<never>(() => {})

t.test('hooks', async t => {
  t.test('onSend hooks run, also asynchronous ones; onResponse runs when the server ends the stream, onRequestAbort when the client does', async t => {
    const ran: string[] = []
    let connection: SSEConnection | undefined
    const { url } = await start(t, app => {
      app.addHook('onSend', (request, reply, payload, done) => {
        reply.header('x-callback', '1')
        done(null, payload)
      })
      app.addHook('onSend', async (request, reply, payload) => {
        await sleep(10)
        reply.header('x-async', '1')
        return payload
      })
      app.addHook('onResponse', async (request, reply) => { ran.push(`onResponse ${reply.statusCode}`) })
      app.addHook('onRequestAbort', async request => { ran.push('onRequestAbort') })
      app.get('/', async (request, reply) => {
        reply.header('x-handler', '1').code(200)
        connection = await reply.sse()
        connection.signal.addEventListener('abort', () => { ran.push('signal') })
      })
    })
    const socket = raw(t, url, {})
    await socket.waitFor('id: ')
    t.match(socket.answers[0]!.headers, { 'x-callback': '1', 'x-async': '1', 'x-handler': '1', 'content-type': 'text/event-stream' })
    t.strictSame(ran, [])
    connection!.close()
    await socket.waitForAnswers(1)
    await until(() => ran.length === 2)
    t.strictSame(ran.splice(0).sort(), ['onResponse 200', 'signal'])
    const leaving = raw(t, url, {})
    await leaving.waitFor('id: ')
    leaving.close()
    await until(() => ran.length === 2)
    t.strictSame(ran.sort(), ['onRequestAbort', 'signal'])
  })

  t.test('the application keeps its listeners on the response, whenever it added them', async t => {
    const heard: string[] = []
    const { url, app } = await start(t, app => {
      app.addHook('onSend', async (request, reply, payload) => {
        (payload as NodeJS.ReadableStream).on('error', () => {})
        return payload
      })
      app.addHook('onSend', async (request, reply, payload) => {
        for (const event of ['close', 'finish']) reply.raw.once(event, () => heard.push(event))
        return payload
      })
      app.get('/', async (request, reply) => { await reply.sse() })
    })
    const socket = raw(t, url, {})
    await socket.waitFor('id: ')
    for (const connection of app.sse.connections()) connection.close()
    await socket.waitForAnswers(1)
    await until(() => heard.length === 2)
    t.strictSame(heard, ['finish', 'close'])
  })

  t.test('onSend hooks of a route with `sse`, however and whenever they were added, see the body before it is opened', async t => {
    const { url } = await start(t, app => {
      const ran = (name: string) => async (_request: unknown, reply: FastifyReply, payload: unknown) => {
        reply.header(`x-${name}`, typeof payload)
        return payload
      }
      const kept: RouteOptions[] = []
      app.addHook('onRoute', route => {
        if (!route.url.startsWith('/hooked')) return
        if (route.url === '/hooked/list') route.onSend = [route.onSend ?? []].flat().concat(ran('list'))
        if (route.url === '/hooked/push') (route.onSend as unknown[]).push(ran('push'))
        if (route.url === '/hooked/alone') route.onSend = ran('alone')
        if (route.url === '/hooked/wrapped') route.onSend = [route.onSend ?? []].flat().map(hook => function (this: FastifyInstance, ...given: Parameters<typeof hook>) { return hook.apply(this, given) })
        kept.push(route)
      })
      app.addHook('onRoute', route => {
        if (route.url === '/hooked/wrapped') (route.onSend as unknown[]).push(ran('after'))
      })
      const handler = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() }
      for (const name of ['list', 'push', 'alone', 'wrapped']) app.get(`/hooked/${name}`, { sse: true, onSend: ran('own') }, handler)
      app.get('/hooked/late', { sse: true }, handler)
      for (const route of kept) if (route.url === '/hooked/late') (route.onSend as unknown[]).push(ran('late'))
      app.addHook('onSend', ran('instance'))
    })
    const seen = { list: ['own', 'list', 'instance'], push: ['own', 'push', 'instance'], alone: ['alone', 'instance'], wrapped: ['own', 'after', 'instance'], late: ['late', 'instance'] }
    for (const [path, names] of Object.entries(seen)) {
      const socket = raw(t, url, { path: `/hooked/${path}` })
      await socket.waitFor('id: ')
      const { headers } = socket.answers[0]!
      t.strictSame(Object.keys(headers).filter(name => name.startsWith('x-') && headers[name] === 'object').sort(), names.map(name => `x-${name}`).sort(), path)
      t.match(headers, { 'content-type': 'text/event-stream', 'transfer-encoding': 'chunked' })
    }
  })

  t.test('headers that were set on the response itself are sent, too', async t => {
    const { url } = await start(t, app => {
      app.addHook('onRequest', async (_request, reply) => { reply.raw.setHeader('x-raw', '1') })
      app.get('/', { sse: true }, async (_request, reply) => { await reply.header('set-cookie', ['a=1', 'b=2']).sse() })
    })
    const socket = raw(t, url, {})
    await socket.waitFor('id: ')
    t.match(socket.answers[0]!.headers, { 'x-raw': '1', 'transfer-encoding': 'chunked' })
    t.match(socket.text, /set-cookie: a=1\r\nset-cookie: b=2\r\n/)
  })

  t.test('a head that cannot be written is an error of the request, and its connection ends', async t => {
    const { url, app } = await start(t, app => {
      app.get('/', { sse: true }, async (_request, reply) => { await reply.header('x-bad', 'a\r\nb').sse() })
    })
    const socket = raw(t, url, {})
    await socket.waitForAnswers(1)
    t.equal(socket.answers[0]!.status, 500)
    await until(() => app.sse.connectionCount === 0)
  })

  t.test('the answer to a head that cannot be written is sent as it comes', async t => {
    const answer = new Readable({ read () {} })
    const { url, app } = await start(t, app => {
      app.setErrorHandler((_error, _request, reply) => reply.header('x-bad', 'good').type('text/plain').send(answer))
      app.get('/', { sse: true }, async (_request, reply) => { await reply.header('x-bad', 'a\r\nb').sse() })
    })
    const socket = raw(t, url, {})
    answer.push('first')
    await socket.waitFor('first')
    answer.push(null)
    await socket.waitForAnswers(1)
    await until(() => app.sse.connectionCount === 0)
  })

  t.test('a stream has status 200 and no length, whatever the handler or a hook said', async t => {
    const { url } = await start(t, app => {
      app.addHook('onSend', async (request, reply) => {
        const { said } = request.query as { said?: string }
        if (said === 'reply') reply.header('content-length', '5')
        if (said === 'raw') reply.raw.setHeader('Content-Length', '5')
      })
      const handler = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.code(201).header('content-length', '5').sse() }
      app.get('/', handler)
      app.get('/sse', { sse: true }, handler)
    })
    for (const path of ['/', '/?said=reply', '/?said=raw', '/sse', '/sse?said=reply', '/sse?said=raw']) {
      const socket = raw(t, url, { path })
      await socket.waitFor('id: ')
      t.equal(socket.answers[0]!.status, 200, path)
      t.notOk('content-length' in socket.answers[0]!.headers, path)
    }
  })

  t.test('trailers do not end a stream; where they are announced they come after it', async t => {
    const { url, app } = await start(t, app => {
      const handler = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.trailer('x-sum', async () => 'abc').sse() }
      app.get('/', handler)
      app.get('/sse', { sse: true }, handler)
    })
    for (const path of ['/', '/sse']) {
      const socket = raw(t, url, { path })
      await socket.waitFor('id: ')
      await app.sse.broadcastEvent({ data: 'later' })
      await socket.waitFor('later')
      const { trailer } = socket.answers[0]!.headers
      for (const connection of app.sse.connections()) connection.close()
      await socket.waitFor('sse:close')
      await until(() => app.sse.connectionCount === 0)
      await socket.waitFor(trailer === undefined ? '0\r\n\r\n' : '0\r\nx-sum: abc\r\n\r\n')
    }
  })

  t.test('an onSend hook that fails answers 500, and the connection has ended', async t => {
    let connection: SSEConnection | undefined
    const { app, url } = await start(t, app => {
      app.addHook('onSend', async (request, reply) => {
        // The answer about the failure passes here as well.
        if (reply.statusCode === 200) throw new Error('refused')
      })
      app.get('/', async (request, reply) => { connection = await reply.sse() })
    })
    const socket = raw(t, url, {})
    const [answer] = await socket.waitForAnswers(1)
    t.equal(answer!.status, 500)
    t.match(answer!.headers['content-type'], /^application\/json/)
    t.match(JSON.parse(answer!.body), { statusCode: 500, message: 'refused' })
    t.notOk('content-length' in answer!.headers && 'transfer-encoding' in answer!.headers, 'one framing only')
    await until(() => connection !== undefined)
    t.equal(connection!.isConnected, false)
    t.equal(connection!.sendEvent({ data: 1 }), false)
    t.equal(app.sse.connectionCount, 0)
    socket.send({ path: '/nothing' })
    await socket.waitFor('Route GET:/nothing not found')
  })

  t.test('an onSend hook that answers otherwise has the last word', async t => {
    let connection: SSEConnection | undefined
    const { app, url } = await start(t, app => {
      app.addHook('onSend', async () => 'something else')
      app.get('/', async (request, reply) => { connection = await reply.sse() })
    })
    const response = await fetch(url)
    t.equal(await response.text(), 'something else')
    await until(() => connection !== undefined)
    t.equal(connection!.isConnected, false)
    t.equal(app.sse.connectionCount, 0)
  })

  t.test('a client that leaves during onSend finds its connection ended', async t => {
    let connection: SSEConnection | undefined
    let inHook = false
    const { app, url } = await start(t, app => {
      app.addHook('onSend', async () => {
        inHook = true
        await until(() => app.sse.connectionCount === 0)
      })
      app.get('/', async (request, reply) => { connection = await reply.sse() })
    })
    const socket = raw(t, url, {})
    await until(() => inHook)
    socket.close()
    await until(() => connection !== undefined)
    t.equal(connection!.isConnected, false)
    // A turn later, so that the handler can listen to it.
    await until(() => connection!.signal.aborted)
    t.equal(connection!.signal.reason.closeReason, 'client')
    t.equal(app.sse.connectionCount, 0)
  })

  t.test('events of the time between admission and head are not lost', async t => {
    let release: (() => void) | undefined
    let connection: SSEConnection | undefined
    const { app, url } = await start(t, app => {
      app.addHook('onSend', () => new Promise<void>(resolve => { release = resolve }))
      app.get('/', async (request, reply) => { connection = await reply.sse({ subscriptions: ['news'] }) })
    }, { outboxBytes: 1024 })
    const socket = raw(t, url, {})
    await until(() => release !== undefined)
    for (let i = 0; i < 100; i++) t.equal((await app.sse.broadcastToSubscriptions({ data: `${i} ${'x'.repeat(100)}` }, ['news'])).delivered, 1)
    release!()
    await until(() => connection !== undefined)
    await socket.waitFor('data: 99 ')
    t.strictSame(dataOf(socket.answers[0]!.body).map(text => parseInt(text)), Array.from({ length: 100 }, (_, i) => i))
    connection!.close()
  })

  t.test('handlerTimeout does not cut a stream', async t => {
    let connection: SSEConnection | undefined
    const { url } = await start(t, app => {
      app.get('/', { handlerTimeout: 50 }, async (request, reply) => { connection = await reply.sse() })
      for (const [path, sse] of [['/source', false], ['/guarded', true]] as const) {
        app.get(path, { sse, handlerTimeout: 50 }, (request, reply) => reply.sse((async function * () {
          for (let i = 0; i < 10; i++) { yield String(i); await sleep(15) }
        })()))
      }
      app.get('/slow', { handlerTimeout: 50 }, () => never)
    })
    const slow = await fetch(`${url}/slow`)
    t.equal(slow.status, 503, 'it does cut what is no stream')
    const socket = raw(t, url, {})
    for (const path of ['/source', '/guarded']) t.strictSame(dataOf((await raw(t, url, { path }).waitForAnswers(1))[0]!.body), ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
    t.equal(connection!.isConnected, true)
    connection!.sendEvent({ data: 'later' })
    await socket.waitFor('later')
    t.equal(connection!.signal.aborted, false)
    connection!.close()
    await socket.waitForAnswers(1)
  })

  t.test('a handlerTimeout that passes during onSend has the last word', async t => {
    const { url, app } = await start(t, app => {
      const overdue = new WeakMap<FastifyReply, Promise<unknown>>()
      app.addHook('onSend', async (_request, reply, payload) => {
        if (typeof payload === 'object') overdue.set(reply, until(() => reply.statusCode === 503))
        await overdue.get(reply)
        // The answer about the timeout comes after the body.
        if (typeof payload === 'string') await turns(3)
      })
      const handler = async (_request: FastifyRequest, reply: FastifyReply) => { await reply.sse() }
      app.get('/', { handlerTimeout: 20 }, handler)
      app.get('/sse', { sse: true, handlerTimeout: 20 }, handler)
    })
    for (const path of ['/', '/sse']) {
      const socket = raw(t, url, { path })
      const [answer] = await socket.waitForAnswers(1)
      t.equal(answer!.status, 503, path)
      t.match(JSON.parse(answer!.body), { code: 'FST_ERR_HANDLER_TIMEOUT' }, path)
      t.notOk('transfer-encoding' in answer!.headers, path)
      await until(() => app.sse.connectionCount === 0)
      socket.send({ path: '/nothing' })
      t.equal((await socket.waitForAnswers(2))[1]!.status, 404, path)
    }
  })

  t.test('a handler may return the promise, await it, or leave it', async t => {
    const { url } = await start(t, app => {
      app.get('/return', (request, reply) => reply.sse(['a']))
      app.get('/await', async (request, reply) => { await reply.sse(['a']) })
      app.get('/connection', async (request, reply) => {
        const connection = await reply.sse()
        connection.sendEvent({ data: 'a' })
        connection.close()
        return connection
      })
      app.get('/plain', (request, reply) => { reply.sse(['a']) })
      app.get('/throws', async (request, reply) => {
        const connection = await reply.sse()
        connection.sendEvent({ data: 'a' })
        setImmediate(() => connection.close())
        throw new Error('after the head')
      })
    })
    for (const path of ['/return', '/await', '/connection', '/plain', '/throws']) {
      const socket = raw(t, url, { path })
      const [answer] = await socket.waitForAnswers(1)
      t.strictSame(dataOf(answer!.body), ['a'], path)
      t.equal(socket.answers.length, 1, path)
    }
  })
})
