import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { request } from 'node:http'
import { createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { chromium } from 'playwright-core'
import t, { type Test } from 'tap'
import { EventSource } from 'undici'
import { tie } from '../lib/testing/tie.js'
import { serve, type Service } from './helpers/app.js'
import { EventStreamParser } from './helpers/parser.js'
import { RawSocket } from './helpers/raw.js'
import { until } from './helpers/wait.js'

// The chunks that go to the socket past Node's own framing, as those read them who stand between a server and its users.

const CHROMIUM = process.env['CHROMIUM'] ?? '/usr/bin/chromium'
const NGINX = ['/usr/sbin/nginx', '/usr/local/sbin/nginx'].find(path => existsSync(path)) ?? 'nginx'
const inCI = process.env['CI'] === 'true'
const withoutNginx = !inCI && spawnSync(NGINX, ['-v']).error !== undefined && 'nginx is not installed'
const withoutChromium = !inCI && !existsSync(CHROMIUM) && `no Chromium at ${CHROMIUM}`

/** Empty, of many bytes a character, of many lines, larger than a buffer of nginx, larger than one write. */
const TEXTS = ['', 'é😀日本', 'a\nb\r\nc', 'x'.repeat(20_000), 'ü'.repeat(100_000), 'last']
const ROUNDS = 5
const EXPECTED = Array.from({ length: ROUNDS }, () => TEXTS.map(text => text.replace(/\r\n/g, '\n'))).flat()

/** Publishes all texts, some alone in their turn and some together. */
async function publish ({ app }: Service): Promise<void> {
  for (let round = 0; round < ROUNDS; round++) {
    for (const data of TEXTS) {
      const delivery = app.sse.broadcastEvent({ event: 'text', data })
      if (round % 2 === 0) await delivery
      if (round === 4) await new Promise(resolve => setImmediate(resolve))
    }
  }
}

/** nginx as its package leaves it, buffering included, in front of a server. Returns its URL. */
async function front (t: Test, url: string): Promise<string> {
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address() as AddressInfo
  probe.close()
  await once(probe, 'close')
  const directory = t.testdir({})
  await writeFile(join(directory, 'nginx.conf'), `
    daemon off; master_process off; worker_processes 1; pid ${directory}/pid; error_log stderr;
    events { worker_connections 64; }
    http {
      access_log off; client_body_temp_path ${directory}; proxy_temp_path ${directory}; fastcgi_temp_path ${directory}; uwsgi_temp_path ${directory}; scgi_temp_path ${directory};
      server { listen 127.0.0.1:${port}; location / { proxy_pass ${url}; proxy_http_version 1.1; proxy_set_header Connection ""; } }
    }`)
  const nginx = tie(spawn(NGINX, ['-c', join(directory, 'nginx.conf'), '-p', directory], { stdio: 'ignore' }))
  t.teardown(async () => {
    nginx.kill()
    if (nginx.exitCode === null && nginx.signalCode === null) await once(nginx, 'exit')
  })
  await until(() => fetch(`http://127.0.0.1:${port}/none`).then(() => true, () => false), undefined, 'nginx answers')
  return `http://127.0.0.1:${port}`
}

function textsOf (parser: EventStreamParser): string[] {
  return parser.events.filter(({ type }) => type === 'text').map(({ data }) => data)
}

/** Reads by Node's HTTP parser. Resolves with the events once the response has ended as a whole. */
async function readByNode (url: string): Promise<{ texts: () => string[], ended: Promise<boolean> }> {
  const parser = new EventStreamParser()
  const asked = request(url, { headers: { accept: 'text/event-stream' } }).end()
  const [response] = await once(asked, 'response')
  response.on('data', (bytes: Buffer) => { parser.push(bytes) })
  response.on('error', () => {})
  const ended = once(response, 'close').then(() => response.complete as boolean, () => false)
  return { texts: () => textsOf(parser), ended }
}

async function readBy (t: Test, service: Service, url: string): Promise<void> {
  const node = await readByNode(`${url}/sse?user=ada`)
  const source = new EventSource(`${url}/sse?user=ada`)
  t.teardown(() => source.close())
  const texts: string[] = []
  source.addEventListener('text', event => { texts.push((event as unknown as { data: string }).data) })
  await until(() => service.app.sse.connectionCount === 2)
  await publish(service)
  await until(() => texts.length === EXPECTED.length && node.texts().length === EXPECTED.length)
  t.ok(texts.every((text, i) => text === EXPECTED[i]), 'undici')
  t.ok(node.texts().every((text, i) => text === EXPECTED[i]), 'Node')
  source.close()
  await service.app.sse.disconnectUser('ada')
  t.equal(await node.ended, true, 'the last chunk is there')
}

t.test('Node and undici, directly', async t => {
  const service = await serve(t)
  await readBy(t, service, service.url)
})

t.test('Node and undici, behind nginx', { skip: withoutNginx }, async t => {
  const service = await serve(t)
  await readBy(t, service, await front(t, service.url))
})

t.test('what goes over the wire is whole chunks, keep-alives and the end included', async t => {
  const service = await serve(t, { keepAliveIntervalMs: 100 })
  const socket = new RawSocket(service.url)
  t.teardown(() => socket.close())
  socket.send({ path: '/sse?user=ada' })
  await until(() => service.app.sse.connectionCount === 1)
  await publish(service)
  await socket.waitFor(': keep-alive')
  await service.app.sse.disconnectUser('ada')
  const [answer] = await socket.waitForAnswers(1)
  const texts = textsOf(new EventStreamParser().push(Buffer.from(answer!.body)))
  t.equal(texts.length, EXPECTED.length)
  t.ok(texts.every((text, i) => text === EXPECTED[i]))
})

t.test('Chromium, behind nginx', { skip: withoutChromium || withoutNginx, timeout: 60_000 }, async t => {
  const service = await serve(t, {}, {}, app => {
    app.get('/', (request, reply) => reply.type('text/html').send('<!doctype html><link rel=icon href=data:,><title>reader</title>'))
  })
  const url = await front(t, service.url)
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu'] })
  t.teardown(() => browser.close())
  const page = await browser.newPage()
  await page.goto(url)
  await page.evaluate('window.texts = []; window.source = new EventSource("/sse?user=ada"); source.addEventListener("text", event => texts.push(event.data))')
  await until(() => service.app.sse.connectionCount === 1)
  await publish(service)
  await until(async () => await page.evaluate('texts.length') === EXPECTED.length)
  const texts = await page.evaluate<string[]>('texts')
  t.ok(texts.every((text, i) => text === EXPECTED[i]))
})
