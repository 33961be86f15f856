import compress from '@fastify/compress'
import cookie from '@fastify/cookie'
import cors from '@fastify/cors'
import helmet from '@fastify/helmet'
import { pipeline, Readable } from 'node:stream'
import { createGunzip, createGzip } from 'node:zlib'
import t from 'tap'
import { fetch } from 'undici'
import { type SSEConnection } from '../../lib/index.js'
import { dataOf } from '../helpers/raw.js'
import { raw, start } from '../helpers/reply.js'
import { until } from '../helpers/wait.js'

t.test('neighbours', async t => {
  t.test('cookies, CORS and helmet headers arrive', async t => {
    let connection: SSEConnection | undefined
    const { url } = await start(t, async app => {
      await app.register(cookie)
      await app.register(cors, { origin: ['https://app.example'], credentials: true })
      await app.register(helmet)
      app.get('/', async (request, reply) => {
        reply.setCookie('session', 'abc', { httpOnly: true, path: '/' })
        connection = await reply.sse()
      })
    }, { allowedOrigins: ['https://app.example'] })
    const response = await fetch(url, { headers: { origin: 'https://app.example' } })
    t.equal(response.status, 200)
    t.strictSame(response.headers.getSetCookie(), ['session=abc; Path=/; HttpOnly; SameSite=Lax'])
    t.equal(response.headers.get('access-control-allow-origin'), 'https://app.example')
    t.equal(response.headers.get('access-control-allow-credentials'), 'true')
    t.equal(response.headers.get('x-content-type-options'), 'nosniff')
    t.ok(response.headers.get('content-security-policy'))
    t.equal(response.headers.get('content-type'), 'text/event-stream')
    connection!.sendEvent({ data: 'hello' })
    connection!.close()
    t.match(await response.text(), 'data: hello\n\n')
  })

  t.test('@fastify/compress swallows no event', async t => {
    for (const customTypes of [undefined, /event-stream|text/]) {
      let connection: SSEConnection | undefined
      const { url } = await start(t, async app => {
        await app.register(compress, { global: true, threshold: 0, ...(customTypes !== undefined && { customTypes }) })
        app.get('/', async (request, reply) => { connection = await reply.sse() })
        app.get('/text', async (request, reply) => reply.type('text/plain').send('x'.repeat(2000)))
      })
      const socket = raw(t, url, { headers: { 'accept-encoding': 'gzip, br' } })
      await socket.waitFor('id: ')
      t.notOk('content-encoding' in socket.answers[0]!.headers)
      connection!.sendEvent({ data: 'one' })
      await socket.waitFor('data: one\n\n')
      connection!.close()
      await socket.waitForAnswers(1)
      const text = raw(t, url, { path: '/text', headers: { 'accept-encoding': 'gzip' } })
      await text.waitFor('\r\n\r\n')
      t.equal(text.answers[0]!.headers['content-encoding'], 'gzip', 'it does compress other answers')
    }
  })

  const wrappers: Record<string, (payload: Readable) => Readable> = {
    'payload.pipe(gzip)': payload => payload.pipe(createGzip()),
    'pipeline(payload, gzip)': payload => pipeline(payload, createGzip(), () => {})
  }
  for (const [name, wrap] of Object.entries(wrappers)) {
    t.test(`a compressor put in by an onSend hook: ${name}`, async t => {
      let connection: SSEConnection | undefined
      const { app, url, log } = await start(t, app => {
        app.addHook('onSend', async (request, reply, payload) => {
          reply.header('content-encoding', 'gzip')
          return wrap(payload as Readable)
        })
        app.get('/', async (request, reply) => { connection = await reply.sse() })
        app.get('/source', (request, reply) => reply.sse((function * () { for (let i = 0; i < 2000; i++) yield `${i} ${'é'.repeat(200)}` })()))
      })
      const open = (path: string) => {
        const socket = raw(t, url, { path })
        const gunzip = createGunzip()
        let text = ''
        let fed = 0
        gunzip.on('data', bytes => { text += String(bytes) })
        gunzip.on('error', () => {})
        socket.socket.on('data', () => {
          const chunks = socket.answers[0]?.chunks ?? []
          if (chunks.length === 0) return
          // Bytes as they are: the decoded text of a chunk would have lost them.
          const all = rawBody(socket.bytes)
          gunzip.write(all.subarray(fed))
          fed = all.length
        })
        return { socket, text: () => text }
      }
      const first = open('/')
      await until(() => first.text().includes('id: '))
      t.equal(first.socket.answers[0]!.headers['content-encoding'], 'gzip')
      for (let i = 0; i < 5; i++) {
        connection!.sendEvent({ data: `event ${i}` })
        await until(() => first.text().includes(`data: event ${i}\n\n`), 10_000, `event ${i}, before a keep-alive`)
      }
      connection!.close()
      await until(() => first.socket.answers[0]!.complete && first.text().includes('sse:close'))
      t.match(first.text(), /event: sse:close\ndata: \{"reason":"closed","reconnect":false\}\n\n$/)
      await until(() => app.sse.connectionCount === 0)

      const source = open('/source')
      await until(() => source.socket.answers[0]?.complete)
      await until(() => source.text().includes('sse:close'))
      t.equal(dataOf(source.text()).length, 2000)

      const leaver = open('/')
      await until(() => leaver.text().includes('id: '))
      leaver.socket.close()
      await until(() => app.sse.connectionCount === 0)
      t.equal(connection!.signal.reason.closeReason, 'client')
      t.equal(connection!.sendEvent({ data: 'nobody' }), false)
      t.notMatch(log.lines.join(''), /uncaught|ERR_STREAM/)

      const head = raw(t, url, { method: 'HEAD', headers: { connection: 'close' } })
      await head.waitForClose()
      t.match(head.text, /^HTTP\/1\.1 200 OK\r\n/)
      await until(() => app.sse.connectionCount === 0)
    })
  }
})

/** The body of a chunked answer, byte by byte. */
function rawBody (bytes: Buffer): Buffer {
  const parts: Buffer[] = []
  let at = bytes.indexOf('\r\n\r\n') + 4
  while (at < bytes.length) {
    const lineEnd = bytes.indexOf('\r\n', at)
    if (lineEnd < 0) break
    const size = parseInt(bytes.toString('latin1', at, lineEnd), 16)
    if (size === 0 || bytes.length < lineEnd + 2 + size + 2) break
    parts.push(bytes.subarray(lineEnd + 2, lineEnd + 2 + size))
    at = lineEnd + 2 + size + 2
  }
  return Buffer.concat(parts)
}
