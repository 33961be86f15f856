import cookie from '@fastify/cookie'
import { type FastifyServerOptions } from 'fastify'
import { once } from 'node:events'
import { createServer, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { SSEError, SSEManager } from '../../lib/index.js'
import { createCertificate } from '../helpers/certificate.js'
import { connectH2, H2Stream } from '../helpers/h2.js'
import { dataOf, requestText } from '../helpers/raw.js'
import { raw, start, waitingAtMost, type Register } from '../helpers/reply.js'
import { listenForTrouble } from '../helpers/trouble.js'
import { turns, until } from '../helpers/wait.js'

t.test('sockets', async t => {
  t.test('as many requests as a client cares to pipeline wait, without a warning, and go with the socket', async t => {
    const warnings = listenForTrouble(t)
    const { app, url } = await start(t, app => { app.get('/', async (request, reply) => { await reply.sse() }) })
    const socket = raw(t, url, {})
    for (let i = 0; i < 30; i++) socket.socket.write(requestText({}))
    await until(() => app.sse.connectionCount === 31)
    socket.socket.resetAndDestroy()
    await until(() => app.sse.connectionCount === 0)
    t.strictSame(warnings, [])
  })

  const routes: Register = app => {
    app.get('/managed', async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
    app.get('/source', (request, reply) => reply.sse(['a', 'b']))
    app.get('/json', async () => ({ json: true }))
  }

  t.test('a socket is used again after a stream ended', async t => {
    const { app, url } = await start(t, routes)
    const socket = raw(t, url, { path: '/source' })
    await socket.waitForAnswers(1)
    socket.send({ path: '/json' })
    await socket.waitForAnswers(2)
    for (let i = 3; i < 6; i++) {
      socket.send({ path: '/managed' })
      await until(() => app.sse.connectionCount === 1)
      await app.sse.broadcastEvent({ data: `event ${i}` })
      const [connection] = app.sse.connections()
      connection!.close()
      await socket.waitForAnswers(i)
    }
    const answers = socket.answers
    t.strictSame(answers.map(({ status }) => status), [200, 200, 200, 200, 200])
    t.strictSame(dataOf(answers[0]!.body), ['a', 'b'])
    t.strictSame(answers[1]!.body, '{"json":true}')
    t.strictSame(answers.slice(2).map(({ body }) => dataOf(body)), [['"event 3"'], ['"event 4"'], ['"event 5"']].map(list => list.map(text => JSON.parse(text) as string)))
    t.equal(app.sse.connectionCount, 0)
    t.equal(socket.closed, false)
  })

  t.test('a client that asks for the end of the socket gets it', async t => {
    const { url } = await start(t, routes)
    const socket = raw(t, url, { path: '/source', headers: { connection: 'close' } })
    const [answer] = await socket.waitForAnswers(1)
    t.strictSame(dataOf(answer!.body), ['a', 'b'])
    await socket.waitForClose()
    t.equal(answer!.headers['connection'], 'close')
  })

  t.test('requests sent ahead wait for the stream, and streams wait for requests', async t => {
    const { app, url } = await start(t, routes)
    const socket = raw(t, url)
    socket.socket.write(requestText({ path: '/json' }) + requestText({ path: '/managed' }) + requestText({ path: '/json' }) + requestText({ path: '/managed' }) + requestText({ path: '/source' }))
    await until(() => app.sse.connectionCount >= 2)
    const { delivered } = await app.sse.broadcastEvent({ data: 'for both' })
    t.equal(delivered, 2)
    await socket.waitFor('for both')
    t.equal(socket.answers.length, 2)
    const [first, second] = app.sse.connections()
    first!.close('one')
    await until(() => socket.answers.length === 4 && socket.answers[3]!.body.includes('for both'))
    await app.sse.broadcastEvent({ data: 'for the second' })
    await socket.waitFor('for the second')
    second!.close('two')
    const answers = await socket.waitForAnswers(5)
    t.strictSame(answers.map(({ status }) => status), [200, 200, 200, 200, 200])
    t.strictSame(answers.map(({ body }) => body.startsWith('{') ? body : dataOf(body).join()), ['{"json":true}', 'for both', '{"json":true}', 'for both,for the second', 'a,b'])
    await until(() => app.sse.connectionCount === 0)
  })

  t.test('streams behind a stream end with their socket', async t => {
    let release: (() => void) | null = null
    const codes: string[] = []
    const { app, url } = await start(t, app => {
      routes(app)
      app.get('/slow', async (request, reply) => {
        await new Promise<void>(resolve => { release = resolve })
        await reply.sse().catch((error: SSEError) => { codes.push(error.code) })
      })
    })
    for (const leave of ['FIN', 'RST'] as const) {
      const socket = raw(t, url)
      socket.socket.write(requestText({ path: '/managed' }) + requestText({ path: '/managed' }) + requestText({ path: '/source' }) + requestText({ path: '/slow' }))
      await until(() => app.sse.connectionCount === 3 && release !== null)
      if (leave === 'FIN') socket.close()
      else socket.socket.resetAndDestroy()
      await until(() => app.sse.connectionCount === 0, undefined, 'all streams of the socket to end')
      release!()
      release = null
      await until(() => codes.length > 0)
      t.strictSame(codes.splice(0), ['SSE_ERR_CLIENT_GONE'], `${leave}: nor does one begin later`)
      t.equal(app.sse.connectionCount, 0)
    }
  })

  t.test('HTTP/1.0 is delimited by the close', async t => {
    const { app, url } = await start(t, routes)
    const socket = raw(t, url, { path: '/managed', version: '1.0', headers: { connection: 'keep-alive' } })
    await socket.waitFor('id: ')
    await app.sse.broadcastEvent({ data: 'old' })
    await socket.waitFor('data: old\n\n')
    const [answer] = socket.answers
    t.notOk('transfer-encoding' in answer!.headers)
    t.equal(answer!.headers['connection'], 'close')
    t.match(answer!.body, /^: stream keep-alive=15000\n\nretry: 3000\n\nid: \S+\n\n/)
    const [connection] = app.sse.connections()
    connection!.close()
    await socket.waitForClose()
    t.ok(socket.text.endsWith('event: sse:close\ndata: {"reason":"closed","reconnect":false}\n\n'))
    t.equal(app.sse.connectionCount, 0)
  })

  const secure = createCertificate(t.testdir())
  const servers: Record<string, { options: object, scheme: string }> = {
    'HTTP/2 in clear text': { options: { http2: true }, scheme: 'http' },
    'HTTP/2 over TLS': { options: { http2: true, https: { ...secure, allowHTTP1: true } }, scheme: 'https' }
  }
  for (const [name, { options, scheme }] of Object.entries(servers)) {
    t.test(name, async t => {
      let cancelled = 0
      const { app, url } = await start(t, async app => {
        await app.register(cookie)
        routes(app)
        app.get('/cookie', async (request, reply) => {
          reply.setCookie('session', 'abc')
          await reply.sse()
        })
        app.get('/endless', (request, reply) => reply.sse((async function * () { try { for (;;) yield 'x'.repeat(10_000) } finally { cancelled++ } })()))
        app.get('/large', (request, reply) => reply.sse(['é'.repeat(500_000), 'b'.repeat(500_000)]))
      }, {}, options)
      const session = connectH2(url.replace('http', scheme))
      t.teardown(() => session.destroy())
      const warnings = listenForTrouble(t)

      const stream = new H2Stream(session, '/cookie')
      await stream.waitFor('id: ')
      t.equal(stream.status, 200)
      t.match(stream.headers, { 'content-type': 'text/event-stream', 'x-accel-buffering': 'no', 'set-cookie': ['session=abc'] })
      t.notOk('connection' in stream.headers || 'transfer-encoding' in stream.headers)
      const second = new H2Stream(session, '/managed')
      await second.waitFor('id: ')
      await app.sse.broadcastEvent({ data: 'both' })
      await Promise.all([stream.waitFor('data: both\n\n'), second.waitFor('data: both\n\n')])
      await app.sse.broadcastToSubscriptions({ data: 'one' }, ['news'])
      await second.waitFor('data: one\n\n')
      t.notMatch(stream.text, 'data: one')

      const [first] = app.sse.connections()
      first!.close('kicked')
      await stream.waitForClose()
      t.equal(stream.ended, true)
      t.equal(stream.named('sse:close')[0]!.data, '{"reason":"kicked","reconnect":false}')
      second.stream.close(8)
      await until(() => app.sse.connectionCount === 0)
      t.strictSame(app.sse.stats().closed, { kicked: 1, client: 1 })

      const source = new H2Stream(session, '/large')
      await source.waitForClose()
      t.strictSame(dataOf(source.text).map(text => text.length), [500_000, 500_000])

      const endless = new H2Stream(session, '/endless')
      endless.stream.pause()
      await until(() => app.sse.stats().queuedBytes > 0 || endless.status === 200)
      t.ok(app.sse.stats().queuedBytes <= waitingAtMost(10_000))
      endless.stream.resume()
      await until(() => endless.text.length > 1_000_000)
      endless.stream.close(8)
      await until(() => cancelled === 1)

      const refused = new H2Stream(session, '/managed', { accept: 'text/html' })
      await refused.waitForClose()
      t.equal(refused.status, 406)
      const head = session.request({ ':path': '/managed', ':method': 'HEAD' })
      const [headers] = await once(head, 'response') as [Record<string, unknown>]
      t.match(headers, { ':status': 200, 'content-type': 'text/event-stream' })
      head.resume()
      await once(head, 'close')
      await until(() => app.sse.connectionCount === 0)

      // The whole session at once.
      const several = Array.from({ length: 5 }, () => new H2Stream(session, '/managed'))
      await Promise.all(several.map(stream => stream.waitFor('id: ')))
      t.equal(app.sse.connectionCount, 5)
      session.destroy()
      await until(() => app.sse.connectionCount === 0)
      t.strictSame(warnings, [])

      if (scheme === 'https') {
        const old = raw(t, url.replace('http', 'https'), { path: '/managed' })
        await old.waitFor('id: ')
        await app.sse.broadcastEvent({ data: 'HTTP/1.1 beside it' })
        await old.waitFor('HTTP/1.1 beside it')
        const [connection] = app.sse.connections()
        connection!.close()
        const [answer] = await old.waitForAnswers(1)
        t.strictSame(dataOf(answer!.body), ['HTTP/1.1 beside it'])
      }
    })
  }

  t.test('HTTPS', async t => {
    const { app, url } = await start(t, routes, {}, { https: secure } as FastifyServerOptions)
    const socket = raw(t, url.replace('http', 'https'), { path: '/managed' })
    await socket.waitFor('id: ')
    for (let i = 0; i < 20; i++) await app.sse.broadcastEvent({ data: `${i} ${'ü'.repeat(20_000)}` })
    const [connection] = app.sse.connections()
    await socket.waitFor('data: 19 ')
    connection!.close()
    const [answer] = await socket.waitForAnswers(1)
    t.equal(dataOf(answer!.body).length, 20)
  })

  t.test('a write that is wrapped, and returns nothing or throws', async t => {
    const { write } = ServerResponse.prototype
    t.teardown(() => { ServerResponse.prototype.write = write })
    type Write = (this: ServerResponse, ...args: unknown[]) => boolean
    const wrappers: Record<string, Write> = {
      'returns nothing': function (...args) {
        Reflect.apply(write, this, args)
        return undefined as unknown as boolean
      },
      throws: () => { throw new Error('of a tracer') }
    }
    const manager = new SSEManager({}, { error () {}, warn () {}, info () {}, debug () {} })
    t.teardown(() => manager.close())
    let wrapped: Write | null = null
    const plain = createServer((request, response) => {
      if (wrapped !== null) response.write = wrapped as typeof write
      manager.createConnection({ request, response }).catch(() => {})
    }).listen(0, '127.0.0.1')
    await once(plain, 'listening')
    t.teardown(() => { plain.close() })
    const { app, url } = await start(t, routes)
    const servers: [string, SSEManager][] = [[url, app.sse], [`http://127.0.0.1:${(plain.address() as AddressInfo).port}`, manager]]
    for (const [what, wrapper] of Object.entries(wrappers)) {
      for (const everywhere of [true, false]) {
        for (const [at, sse] of everywhere ? servers : servers.slice(1)) {
          wrapped = everywhere ? null : wrapper
          if (everywhere) ServerResponse.prototype.write = wrapper as typeof write
          const socket = raw(t, at, { path: '/managed' })
          // A stream on a socket of its own does not go through the prototype.
          if (what === 'throws' && !everywhere) {
            await socket.waitForClose()
          } else {
            await socket.waitFor('retry: ')
            await sse.broadcastEvent({ data: 'heard' })
            await socket.waitFor('data: heard')
            socket.socket.destroy()
          }
          ServerResponse.prototype.write = write
          await until(() => sse.connectionCount === 0, undefined, `${what}, ${everywhere ? 'of all responses' : 'of this response'}`)
        }
      }
    }
  })

  t.test('a write that is wrapped, and returns nothing, does not queue without end for a client that does not read', async t => {
    const { app, url } = await start(t, app => {
      app.get('/', async (_request, reply) => {
        const { raw } = reply
        const { write } = raw
        raw.write = function (...args: unknown[]) { Reflect.apply(write, raw, args) } as unknown as typeof write
        await reply.sse()
      })
    }, { outboxBytes: 10_000 })
    const socket = raw(t, url, { path: '/' })
    await socket.waitFor('retry: ')
    socket.socket.pause()
    const [connection] = app.sse.connections()
    for (let i = 0; i < 2_000 && !connection!.stats().lagging; i++) await app.sse.broadcastEvent({ data: 'x'.repeat(30_000) })
    t.match(connection!.stats(), { lagging: true })
    t.ok(connection!.stats().queuedBytes < 400_000, `${connection!.stats().queuedBytes} bytes wait`)
  })

  /** Sends events of this size, each in a write of its own, to a client that does not read, until more waits than its socket has taken. */
  async function stuck (t: Test, size: number) {
    let ended: ServerResponse | null = null
    const { app, url } = await start(t, app => {
      routes(app)
      app.get('/ended', async (_request, reply) => {
        await reply.sse()
        ended = reply.raw
      })
    })
    const socket = raw(t, url, { path: '/ended' })
    await socket.waitFor('retry: ')
    socket.socket.pause()
    const [connection] = app.sse.connections()
    for (let i = 0; i < 2_000 && connection!.stats().queuedBytes < 300_000; i++) {
      await app.sse.broadcastEvent({ data: 'x'.repeat(size) })
      await turns(1)
    }
    t.ok(connection!.stats().queuedBytes >= 300_000, 'more waits than the socket has taken')
    return { app, socket, response: ended! as ServerResponse }
  }

  t.test('a response that the application ends while a client is slow has nothing behind its end', async t => {
    // A larger event would be cut off in the middle.
    const { app, socket, response } = await stuck(t, 30_000)
    response.end()
    await app.sse.broadcastEvent({ data: 'behind' })
    socket.send({ path: '/json' })
    socket.socket.resume()
    const [stream, json] = await socket.waitForAnswers(2)
    t.notOk(dataOf(stream!.body).includes('behind'))
    t.equal(json!.body, '{"json":true}', 'the next answer on the socket is whole')
    await until(() => app.sse.connectionCount === 0)
  })

  t.test('a response that the application ends in the middle of an event takes its socket with it', async t => {
    const { app, socket, response } = await stuck(t, 900_000)
    response.end()
    socket.send({ path: '/json' })
    socket.socket.resume()
    await socket.waitForClose()
    t.notOk(socket.text.includes('{"json":true}'), 'no answer begins inside of an event')
    await until(() => app.sse.connectionCount === 0)
  })

  t.test('a header that is not ASCII has the same bytes on a stream as anywhere else', async t => {
    const { url } = await start(t, app => {
      app.addHook('onRequest', async (_request, reply) => { reply.header('x-name', 'é') })
      routes(app)
    })
    const names: string[] = []
    for (const path of ['/json', '/managed']) {
      const socket = raw(t, url, { path })
      const bytes: Buffer[] = []
      socket.socket.on('data', (data: Buffer) => { bytes.push(data) })
      await until(() => Buffer.concat(bytes).includes('\r\n\r\n'))
      names.push(/^x-name: .*$/m.exec(Buffer.concat(bytes).toString('latin1'))![0])
    }
    t.equal(names[0], names[1])
  })

  t.test('inject with payloadAsStream, and its abort', async t => {
    const { app } = await start(t, routes)
    const ended = await app.inject({ url: '/source', payloadAsStream: true })
    t.equal(ended.statusCode, 200)
    let text = ''
    for await (const bytes of ended.stream()) text += String(bytes)
    t.strictSame(dataOf(text), ['a', 'b'])

    const controller = new AbortController()
    const response = await app.inject({ url: '/managed', payloadAsStream: true, signal: controller.signal })
    t.equal(response.headers['content-type'], 'text/event-stream')
    let received = ''
    response.stream().on('data', bytes => { received += String(bytes) })
    response.stream().on('error', () => {})
    await app.sse.broadcastEvent({ data: 'injected' })
    await until(() => received.includes('data: injected\n\n'))
    t.match(received, /^: stream keep-alive=15000\n\nretry: 3094\n\nid: \S+\n\nid: \S+\ndata: injected\n\n$/)
    const [connection] = app.sse.connections()
    const { signal } = connection!
    controller.abort()
    await until(() => app.sse.connectionCount === 0)
    t.equal(signal.reason.closeReason, 'client')
  })
})
