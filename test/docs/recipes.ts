import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import type { NestFastifyApplication } from '@nestjs/platform-fastify'
import type { FastifyInstance } from 'fastify'
import { chromium } from 'playwright-core'
import type { Test } from 'tap'
import ts from 'typescript'
import { EventSource } from 'undici'
import ssePlugin from '../../lib/index.js'
import type { TestStream } from '../../lib/testing/index.js'
import { listen, payloads } from '../helpers/app.js'
import { transpile } from '../helpers/compiler.js'
import { pageAt, ROOT, sampleOf } from '../helpers/pages.js'
import { at, bare, eventSourceOf, run, visit, type Drivers } from '../helpers/samples.js'
import type { ClientOptions } from '../helpers/sse.js'
import { until } from '../helpers/wait.js'

const validateToken = async (token: string) => token === 'good' || token === 'other' ? `user-${token}` : null
const CHROMIUM = process.env['CHROMIUM'] ?? '/usr/bin/chromium'
const withoutChromium = process.env['CI'] !== 'true' && !existsSync(CHROMIUM) && `no Chromium at ${CHROMIUM}`
const bearer = (token: string): { headers: Record<string, string> } => ({ headers: { authorization: `Bearer ${token}` } })

/** The first fence of a language in a page. */
function fenceIn (path: string, language: string): string {
  return new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\`$`, 'ms').exec(pageAt(path).text)![1]!
}

// --- Outbox ---

interface OrderChange { orderId: string, version: number, state: string }

/** A store with transactions: what `work` writes becomes visible when it resolves, and not at all when it rejects. */
class Store {
  readonly versions = new Map<string, number>()
  rows: { id: number, change: OrderChange }[] = []
  #lastId = 0
  /** Called before a row is deleted: throws, as a process stops. */
  beforeDelete = () => {}

  async transaction (work: (transaction: { setState (orderId: string, state: string): Promise<number>, addToOutbox (change: OrderChange): Promise<void> }) => Promise<void>): Promise<void> {
    const versions = new Map<string, number>()
    const rows: { id: number, change: OrderChange }[] = []
    await work({
      setState: async orderId => {
        const version = (versions.get(orderId) ?? this.versions.get(orderId) ?? 0) + 1
        versions.set(orderId, version)
        return version
      },
      addToOutbox: async change => { rows.push({ id: ++this.#lastId, change }) }
    })
    for (const [orderId, version] of versions) this.versions.set(orderId, version)
    this.rows.push(...rows)
  }

  async readOutbox (): Promise<{ id: number, change: OrderChange }[]> {
    return this.rows.slice(0, 2)
  }

  async deleteFromOutbox (id: number): Promise<void> {
    this.beforeDelete()
    this.rows = this.rows.filter(row => row.id !== id)
  }
}

// --- Order dashboard ---

interface Dashboard {
  app: FastifyInstance
  url: string
  /** Signs in and returns the cookie. */
  signIn (user: string): Promise<string>
  post (url: string, cookie: string, payload?: object): Promise<{ status: number, body: any }>
}

/** The application of the page, with times and a history that a test can wait for. */
async function startDashboard (t: Test): Promise<Dashboard> {
  const server = transpile(sampleOf('order-dashboard'), ['app']).replace('maxConnectionsPerUser: 10', 'retryMs: 300, history: { maxEvents: 1 }, maxConnectionsPerUser: 10')
  const directory = t.testdir({ 'server.mjs': server, 'orders.html': fenceIn('docs/recipes/order-dashboard.md', 'html'), 'orders.js': sampleOf('order-dashboard-client').text })
  const before = process.rawListeners('SIGTERM')
  const { app } = await import(pathToFileURL(join(directory, 'server.mjs')).href) as { app: FastifyInstance }
  t.teardown(async () => {
    for (const listener of process.rawListeners('SIGTERM')) if (!before.includes(listener)) process.removeListener('SIGTERM', listener as () => void)
    await app.close()
  })
  const post: Dashboard['post'] = async (url, cookie, payload) => {
    const response = await app.inject({ method: 'POST', url, headers: { cookie }, ...(payload !== undefined && { payload }) })
    return { status: response.statusCode, body: response.json() }
  }
  return {
    app,
    url: at(app.server),
    post,
    async signIn (user) {
      const response = await app.inject({ method: 'POST', url: '/login', payload: { user } })
      return String(response.headers['set-cookie']).split(';')[0]!
    }
  }
}

// --- MCP ---

/** A model whose answer a test lets go on, token by token. */
function slowModel (): { model: object, signals: AbortSignal[], feed (...tokens: (string | Error)[]): void, end (): void } {
  const tokens: (string | Error)[] = []
  const signals: AbortSignal[] = []
  let isEnded = false
  return {
    signals,
    feed: (...more) => { tokens.push(...more) },
    end: () => { isEnded = true },
    model: {
      async * stream (prompt: string, { signal }: { signal: AbortSignal }) {
        signals.push(signal)
        for (let next = 0; ;) {
          signal.throwIfAborted()
          const token = tokens[next]
          if (token instanceof Error) throw token
          if (token === undefined) {
            if (isEnded) return
            await sleep(5)
          } else {
            next++
            yield `${prompt}${token}`
          }
        }
      }
    }
  }
}

const rpc = (token: string, body: object): ClientOptions => ({
  method: 'POST',
  headers: { ...bearer(token).headers, 'content-type': 'application/json', accept: 'application/json, text/event-stream' },
  body: JSON.stringify(body)
})

const lastEventId = (token: string, id: string): ClientOptions => ({ headers: { ...bearer(token).headers, accept: 'text/event-stream', 'last-event-id': id } })

/** Messages, as an MCP client reads them: events without a name, and with data. */
const messages = (stream: TestStream) => stream.named('message').filter(({ data }) => data !== '').map(({ json }) => json)

/** Of the samples in docs/recipes/. */
export const DRIVERS: Drivers = {
  async outbox (t) {
    const app = bare(t)
    const db = new Store()
    await app.register(ssePlugin)
    app.get('/orders', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: ['orders:*'] }) })
    const { shipOrder, relay } = await run(t, { app, db })
    const stream = await visit(t, `${await listen(app)}/orders`)
    const changes = () => payloads(stream, 'data').map(({ data: { orderId, version } }) => `${orderId}.${version}`)

    for (const orderId of ['1', '2', '3']) await shipOrder(orderId)
    await stream.until(() => changes().length >= 3)
    // Not sooner: of two undelivered changes of one order only the newer is sent.
    await shipOrder('3')
    await stream.until(() => changes().length >= 4)
    await until(() => db.rows.length === 0)
    t.same(changes(), ['1.1', '2.1', '3.1', '3.2'], 'in order, and more rows than one read returns')

    await t.rejects(db.transaction(async transaction => {
      await transaction.addToOutbox({ orderId: '4', version: await transaction.setState('4', 'shipped'), state: 'shipped' })
      throw new Error('rolled back')
    }))
    await relay()

    // The process stops after the publish, before the row is deleted.
    db.beforeDelete = () => { throw new Error('stopped') }
    await shipOrder('5')
    await stream.until(() => changes().includes('5.1'))
    await until(() => db.rows.length === 1)
    db.beforeDelete = () => {}
    await until(() => db.rows.length === 0, 10_000, 'the interval finds the row')
    await stream.until(() => changes().length >= 6)
    t.same([...new Set(changes().slice(4))], ['5.1'], 'published more than once, and nothing of what was rolled back')
    const [first, second] = stream.named('data').slice(4)
    t.not(first!.id, second!.id)
    // The interval uses globals that end with the test.
    await app.close()
  },

  async 'outbox-client' (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    app.get('/orders', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: ['orders:*'] }) })
    const shown: string[] = []
    await run(t, { EventSource: eventSourceOf(t, await listen(app)).Source, showOrder: ({ orderId, version }: OrderChange) => shown.push(`${orderId}.${version}`) })
    await until(() => app.sse.connectionCount === 1)
    for (const [orderId, version] of [['1', 1], ['1', 1], ['1', 3], ['1', 2], ['2', 1], ['1', 4]] as const) {
      await app.sse.broadcastData('order', { orderId, version, state: 'shipped' }, { subscriptionIds: [`orders:${orderId}`] })
    }
    await until(() => shown.includes('1.4'))
    t.same(shown, ['1.1', '1.3', '2.1', '1.4'], 'duplicates and older changes are ignored')
  },

  async 'order-dashboard' (t) {
    const { app, url, signIn, post } = await startDashboard(t)
    t.match(await (await fetch(url)).text(), "from '/orders.js'")
    t.match(await (await fetch(`${url}/orders.js`)).text(), 'export function connect')
    for (const path of ['/live', '/orders']) t.equal((await visit(t, url + path)).status, 401, path)
    t.equal((await post('/login', '', { user: 'eve' })).status, 401)

    const [ada, grace, staff] = await Promise.all(['ada', 'grace', 'staff'].map(signIn)) as [string, string, string]
    const [adaStream, staffStream] = await Promise.all([ada, staff].map(cookie => visit(t, `${url}/live`, { headers: { cookie } }))) as [TestStream, TestStream]
    const { body: tea } = await post('/orders', ada, { item: 'tea' })
    await post('/orders', grace, { item: 'milk' })
    await staffStream.until(() => staffStream.named('data').length >= 2)
    t.same(payloads(staffStream, 'data').map(({ data: { customer, item, state } }) => [customer, item, state]), [['ada', 'tea', 'placed'], ['grace', 'milk', 'placed']])

    t.equal((await post(`/orders/${tea.id}/next`, ada)).status, 403)
    t.equal((await post('/orders/none/next', staff)).status, 404)
    t.match(await post(`/orders/${tea.id}/next`, staff), { status: 200, body: { state: 'packed', version: 2 } })
    await adaStream.until(() => adaStream.named('data').length >= 2)
    t.same(payloads(adaStream, 'data').map(({ data: { item, state } }) => [item, state]), [['tea', 'placed'], ['tea', 'packed']], 'her own orders only')
    const list = await app.inject({ url: '/orders', headers: { cookie: ada } })
    t.match(list.json(), { isStaff: false, orders: [{ item: 'tea', state: 'packed', version: 2 }] })
    t.equal(list.json().orders.length, 1)
    t.match((await app.inject({ url: '/orders', headers: { cookie: staff } })).json(), { isStaff: true, orders: [{ item: 'tea' }, { item: 'milk' }] })

    t.same((await post('/logout', ada)).body, { streams: 1 })
    await adaStream.ended
    t.same(payloads(adaStream, 'sse:close'), [{ reason: 'disconnected', reconnect: false }])
    t.equal((await visit(t, `${url}/live`, { headers: { cookie: ada } })).status, 401)

    if (withoutChromium !== false) return t.comment(withoutChromium)
    const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-dev-shm-usage'] })
    t.teardown(() => browser.close())
    const page = await browser.newPage()
    const signInAs = async (user: string) => {
      await page.locator('#login [name=user]').fill(user)
      await page.locator('#login button').click()
      await page.locator('#logout').waitFor()
    }
    await page.goto(url)
    await signInAs('ada')
    await page.locator('#list li', { hasText: 'ada: tea, packed' }).waitFor()
    t.equal(await page.locator('#list li').count(), 1)
    t.equal(await page.locator('#list button').count(), 0, 'a customer has no button that would be answered with 403')
    await page.locator('#logout').click()
    await page.locator('#login').waitFor()
    t.equal(await page.locator('#list').innerText(), '', 'signing out clears the list')
    await signInAs('grace')
    await page.locator('#list li').waitFor()
    t.same((await page.locator('#list li').allInnerTexts()).map(text => text.trim()), ['grace: milk, placed'])
    await page.locator('#logout').click()
    await page.locator('#login').waitFor()
    await signInAs('staff')
    await page.locator('#list li', { hasText: 'milk' }).locator('button').click()
    await page.locator('#list li', { hasText: 'grace: milk, packed' }).waitFor()
  },

  async 'order-dashboard-client' (t) {
    const { app, url, signIn, post } = await startDashboard(t)
    const [ada, staff] = [await signIn('ada'), await signIn('staff')]
    const { fetch } = globalThis
    let loads = 0
    let signIns = 0
    let held: Promise<void> | null = null
    const load = async (path: string, { headers }: { headers: Record<string, string> }) => {
      loads++
      const response = await fetch(url + path, { headers: { ...headers, cookie: ada } })
      await held
      return response
    }
    const shown: { item: string, state: string }[][] = []
    const { connect } = await run(t, { EventSource: eventSourceOf(t, url, ada).Source, fetch: load })
    const roles: boolean[] = []
    const show = (orders: { item: string, state: string }[], isStaff: boolean) => {
      shown.push(orders)
      roles.push(isStaff)
    }
    const source = connect({ show, signIn: () => { signIns++ } }) as EventSource
    const line = () => shown.at(-1)?.map(({ item, state }) => `${item} ${state}`).sort().join(', ')
    await until(() => shown.length > 0)
    t.equal(line(), '')

    const { body: tea } = await post('/orders', ada, { item: 'tea' })
    await until(() => line() === 'tea placed')
    await post(`/orders/${tea.id}/next`, staff)
    await until(() => line() === 'tea packed')

    /** Cuts the stream off; `what` happens while the client is away. */
    const away = async (what: () => Promise<unknown>) => {
      for (const connection of app.sse.getConnectionsByUser('ada')) connection.close('max-age')
      await until(() => app.sse.connectionCount === 0)
      await what()
      await until(() => app.sse.connectionCount === 1)
    }
    await away(() => post('/orders', ada, { item: 'milk' }))
    await until(() => line() === 'milk placed, tea packed')
    t.equal(loads, 1, 'resumed')
    await away(async () => { for (const item of ['salt', 'rice', 'oats']) await post('/orders', ada, { item }) })
    await until(() => line() === 'milk placed, oats placed, rice placed, salt placed, tea packed')
    t.equal(loads, 2, 'loaded after the gap')
    t.equal(signIns, 0)
    t.notOk(roles.includes(true))

    // The list is asked for before the sign-out, and arrives after it.
    let release = () => {}
    held = new Promise(resolve => { release = resolve })
    source.dispatchEvent(new Event('sse:gap'))
    await until(() => loads === 3)
    await post('/logout', ada)
    await until(() => signIns === 1)
    t.equal(source.readyState, EventSource.CLOSED)
    const before = shown.length
    release()
    await sleep(50)
    t.equal(shown.length, before, 'not shown again')
    t.equal(signIns, 1)
    // Without a session: refused.
    connect({ show: () => {}, signIn: () => { signIns++ } })
    await until(() => signIns === 2)
  },

  async htmx (t) {
    const app = bare(t)
    await run(t, { app })
    const url = await listen(app)
    const put = (id: string, customer: string, state: string) => app.inject({ method: 'PUT', url: `/orders/${id}`, payload: { customer, state } })
    await put('1', '<Ada> & "Co"', 'placed')
    const { Source } = eventSourceOf(t, url)
    const source = new Source('/orders/live')
    const lists: string[] = []
    source.addEventListener('orders', event => { lists.push((event as MessageEvent).data) })
    await until(() => lists.length === 1)
    t.equal(lists[0], '<li>&#60;Ada&#62; &#38; &#34;Co&#34;: placed</li>', 'the state, escaped')
    await put('2', 'Grace', 'placed')
    await until(() => lists.length === 2)
    t.equal(lists[1], `${lists[0]}\n<li>Grace: placed</li>`, 'lines are joined again')
    const returning = await visit(t, `${url}/orders/live`, { headers: { 'last-event-id': 'nonsense' } })
    await returning.until(() => returning.named('orders').length >= 1)
    t.same(returning.events.map(({ event, data }) => [event, data]), [['orders', lists[1]]], 'no replay and no gap')
  },

  async datastar (t) {
    const app = bare(t)
    const { patchElements } = await run(t, { app }, ['patchElements'])
    const url = await listen(app)
    const put = (id: string, state: string) => app.inject({ method: 'PUT', url: `/orders/${id}`, payload: { state } })
    await put('1', 'placed')
    const stream = await visit(t, `${url}/live`)
    await stream.until(() => stream.events.length >= 2)
    await put('1', 'packed')
    await put('2', '<b>placed</b>')
    await stream.until(() => stream.events.length >= 6)
    const list = (...lines: string[]) => ['elements <ul id="orders">', ...lines.map(line => `elements ${line}`), 'elements </ul>'].join('\n')
    t.same(stream.events.map(({ event, data }) => [event, data]), [
      ['datastar-patch-elements', list('<li id="order-1">placed</li>')],
      ['datastar-patch-signals', 'signals {"count":1}'],
      ['datastar-patch-elements', 'elements <li id="order-1">packed</li>'],
      ['datastar-patch-signals', 'signals {"count":1}'],
      ['datastar-patch-elements', list('<li id="order-1">packed</li>', '<li id="order-2">&#60;b&#62;placed&#60;/b&#62;</li>')],
      ['datastar-patch-signals', 'signals {"count":2}']
    ])
    t.match(patchElements('<p>\r</p>\r\n<p></p>', { selector: '#a', mode: 'append' }), { data: 'selector #a\nmode append\nelements <p>\nelements </p>\nelements <p></p>' })
    t.match(patchElements('', { selector: '#a', mode: 'remove' }), { data: 'selector #a\nmode remove' })
  },

  async nest (t) {
    const { createApp } = await run(t, { validateToken })
    // As the compiler of a Nest project has it; the one of the tests does not know decorators of this kind.
    const source = fenceIn('docs/recipes/nest.md', 'typescript').replace("'fastify-sse-manager'", JSON.stringify(pathToFileURL(join(ROOT, 'lib/index.js')).href))
    const { outputText } = ts.transpileModule(source, {
      compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, experimentalDecorators: true, emitDecoratorMetadata: true }
    })
    const file = join(t.testdirName, 'controller.mjs')
    await writeFile(file, outputText)
    const { AppModule } = await import(pathToFileURL(file).href)
    const nest = await createApp(AppModule) as NestFastifyApplication
    t.teardown(() => nest.close())
    const { sse } = nest.getHttpAdapter().getInstance() as unknown as FastifyInstance
    await nest.listen(0, '127.0.0.1')
    const url = at(nest.getHttpServer())

    for (const path of ['/live', '/orders/live']) t.equal((await visit(t, url + path)).status, 401, path)
    const streams = [await visit(t, `${url}/live`, bearer('good')), await visit(t, `${url}/orders/live`, bearer('good'))]
    t.same(await (await fetch(`${url}/orders/7/ship`, { method: 'POST' })).json(), { delivered: 2 })
    for (const stream of streams) {
      await stream.next('data')
      t.same(payloads(stream, 'data'), [{ resource: 'order', data: { id: '7', state: 'shipped' } }])
    }

    // A node that is leaving: an EventSource is told to come back by both.
    const drained = sse.drain()
    for (const path of ['/live', '/orders/live']) {
      const refused = await visit(t, url + path, { headers: { ...bearer('good').headers, accept: 'text/event-stream' } })
      await refused.ended
      t.match(payloads(refused, 'sse:error'), [{ code: 'SSE_ERR_CLOSED', retryable: true }], path)
    }
    await Promise.all(streams.map(stream => stream.ended))
    for (const stream of streams) t.same(payloads(stream, 'sse:close'), [{ reason: 'shutdown', reconnect: true }])
    await drained
  },

  async mcp (t) {
    const app = bare(t)
    const { model, signals, feed, end } = slowModel()
    await run(t, { app, model, validateToken })
    const url = `${await listen(app)}/mcp`
    const call = { jsonrpc: '2.0', id: 7, method: 'tools/call', params: { name: 'complete', arguments: { prompt: '.' }, _meta: { progressToken: 'p' } } }
    t.equal((await visit(t, url, rpc('bad', call))).status, 401)
    t.equal((await visit(t, url, { ...rpc('good', call), headers: { ...rpc('good', call).headers, origin: 'https://other.example' } })).status, 403)
    t.equal((await visit(t, url, rpc('good', { jsonrpc: '2.0', method: 'notifications/cancelled' }))).status, 202)
    const unknown = await visit(t, url, rpc('good', { ...call, method: 'tools/none' }))
    t.equal(unknown.status, 404)
    t.match(unknown.body, { id: 7, error: { code: -32601 } })
    for (const method of ['GET', 'DELETE']) t.equal((await visit(t, url, { method, ...bearer('good') })).status, 405)

    // Cancelled by leaving.
    const left = await visit(t, url, rpc('good', call))
    feed('a')
    await left.until(() => messages(left).length >= 1)
    await left.close()
    await until(() => signals[0]!.aborted)

    const stream = await visit(t, url, rpc('good', call))
    feed('b')
    end()
    await stream.ended
    t.same(messages(stream), [
      ...[1, 2].map(progress => ({ jsonrpc: '2.0', method: 'notifications/progress', params: { progressToken: 'p', progress } })),
      { jsonrpc: '2.0', id: 7, result: { resultType: 'complete', content: [{ type: 'text', text: '.a.b' }] } }
    ])
    t.same(stream.events.map(({ event }) => event), ['message', 'message', 'message', 'sse:close'])

    feed(new Error('out of tokens'))
    const failed = await visit(t, url, rpc('good', call))
    await failed.ended
    t.match(messages(failed).at(-1), { jsonrpc: '2.0', id: 7, error: { code: -32603, message: 'The tool failed' } })
  },

  async 'mcp-resume' (t) {
    const app = bare(t)
    const { model, signals, feed, end } = slowModel()
    await run(t, { app, model, validateToken })
    const url = `${await listen(app)}/mcp`
    const stream = await visit(t, url, rpc('good', { jsonrpc: '2.0', id: 7, params: { arguments: { prompt: '.' } } }))
    await stream.until(() => stream.events.length >= 1)
    const [{ event, data, id }] = stream.events as readonly [TestStream['events'][number]]
    t.same([event, data], ['message', ''])
    t.match(id, /^[\w-]{36}\.0$/, 'an id without data')
    const primed = id!
    await stream.close()
    await until(() => app.sse.connectionCount === 0)
    feed('a')
    t.equal(signals[0]!.aborted, false, 'the request goes on')

    const answer = { jsonrpc: '2.0', id: 7, result: { content: [{ type: 'text', text: '.a' }] } }
    const waiting = await visit(t, url, lastEventId('good', primed))
    end()
    await waiting.ended
    t.same(messages(waiting), [answer])
    const read = waiting.events.find(({ data }) => data.startsWith('{"jsonrpc"'))!.id!
    t.match(read, /^[\w-]{36}\.1$/)

    const again = await visit(t, url, lastEventId('good', read))
    await again.ended
    t.same(messages(again), [], 'nothing twice')
    t.equal((await visit(t, url, lastEventId('other', primed))).status, 400, 'a job of another user')
    t.equal((await visit(t, url, lastEventId('good', 'nonsense'))).status, 400)
    t.equal((await visit(t, url, bearer('good'))).status, 405)
  }
}
