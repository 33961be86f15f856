import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import type { NestFastifyApplication } from '@nestjs/platform-fastify'
import Fastify, { type FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import ts from 'typescript'
import { EventSource } from 'undici'
import ssePlugin from '../../lib/index.js'
import { forceGap, restart, type TestStream } from '../../lib/testing/index.js'
import { listen, payloads } from '../helpers/app.js'
import { browse } from '../helpers/browser.js'
import { Gate } from '../helpers/gate.js'
import { fenceIn, linesOf, ROOT, sampleOf } from '../helpers/pages.js'
import { at, bare, eventSourceOf, run, visit, type Drivers } from '../helpers/samples.js'
import type { ClientOptions } from '../helpers/sse.js'
import { until } from '../helpers/wait.js'

const validateToken = async (token: string) => token === 'good' || token === 'other' ? `user-${token}` : null
const bearer = (token: string): { headers: Record<string, string> } => ({ headers: { authorization: `Bearer ${token}` } })

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

// --- State ---

interface RenderedOrder { id: string, item: string, state: string, version: number }

/** The application of docs/recipes/rendered-page.md, and the orders that it reads. */
async function startRenderedPage (t: Test, readOrders: () => Promise<RenderedOrder[]>): Promise<{ app: FastifyInstance, gate: Gate, url: string, publish (order: RenderedOrder): Promise<void> }> {
  const app = bare(t)
  const gate = new Gate()
  app.addHook('onRequest', gate.hook)
  app.get('/orders.js', async (request, reply) => reply.type('text/javascript').send(sampleOf('rendered-page-client').text))
  const edit = (text: string) => text.replace('register(ssePlugin)', 'register(ssePlugin, { retryMs: 100, history: { maxEvents: 10 } })')
  const { publish } = await run(t, { app, readOrders }, [], edit, 'rendered-page')
  return { app, gate, url: await listen(app), publish }
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
    const html = fenceIn('docs/recipes/order-dashboard.md', 'html')
    t.ok(linesOf(sampleOf(t.name).text) <= 25, 'a short server')
    t.ok(linesOf(html) <= 20, 'a short page')
    t.testdir({ 'orders.html': html })
    const gate = new Gate()
    const { app, orders } = await run(t, { gate: gate.hook }, ['app', 'orders'], text => text
      .replace('const app = fastify();', "$& app.addHook('onRequest', gate);")
      .replace('register(ssePlugin)', 'register(ssePlugin, { retryMs: 100, history: { maxEvents: 10 } })')) as { app: FastifyInstance, orders: Map<string, object> }
    t.teardown(() => app.close())
    const url = at(app.server)
    const put = async (id: string, item: string, state?: string) => await app.inject({ method: 'PUT', url: `/orders/${id}`, payload: { item, state } })

    await put('1', 'tea', 'placed')
    const stream = await visit(t, `${url}/orders`)
    t.same((await stream.next('orders')).json, [{ id: '1', item: 'tea', state: 'placed', version: 1 }])
    await put('1', 'tea', 'packed')
    t.same((await stream.next('order')).json, { id: '1', item: 'tea', state: 'packed', version: 2 })
    t.equal((await put('1', 'tea')).statusCode, 400)
    await stream.close()

    const page = await browse(t, url)
    if (page === null) return
    const shows = async (text: string) => t.ok(await until(async () => await page.locator('#list').textContent() === text, undefined, text), text)
    await shows('tea: packed\n')
    // A change that the list contains already.
    await app.sse.broadcastEvent({ event: 'order', data: { id: '1', item: 'tea', state: 'placed', version: 1 } }, { subscriptionIds: ['orders'] })
    await put('2', '<b>milk</b>', 'placed')
    await shows('tea: packed\n<b>milk</b>: placed\n')
    await gate.away(app, async () => await put('2', 'milk', 'packed'))
    await shows('tea: packed\nmilk: packed\n')
    await gate.away(app, async () => {
      // Not published: only the list tells it.
      orders.delete('1')
      await forceGap(app)
    })
    await shows('milk: packed\n')

    const says = async (text: string) => t.ok(await until(async () => await page.locator('#state').textContent() === text, undefined, text), text)
    await says('Live')
    const close = (reason: string) => { for (const connection of app.sse.connections()) connection.close(reason) }
    await page.route('**/orders', route => route.fulfill({ status: 502 }))
    close('max-age')
    await says('Not live: reload the page')
    await page.unroute('**/orders')
    await page.reload()
    await says('Live')
    close('kicked')
    await says('Not live: reload the page')
  },

  async 'order-dashboard-users' (t) {
    const app = bare(t)
    const sessions = new Map([['a', { userId: 'ada', role: 'guest' }], ['s', { userId: 'sam', role: 'staff' }]])
    const asked: unknown[] = []
    await run(t, {
      app,
      findSession: async (id: string) => sessions.has(id) ? { ...sessions.get(id), expiresAt: Date.now() + 600_000 } : null,
      loadOrders: async (topics: unknown) => asked.push(topics) && [{ id: '1', version: 1 }]
    })
    const url = `${await listen(app)}/orders`
    t.equal((await visit(t, url)).status, 401)
    const [ada, staff] = [await visit(t, url, { headers: { cookie: 'session=a' } }), await visit(t, url, { headers: { cookie: 'session=s' } })]
    for (const stream of [ada, staff]) await stream.next('orders')
    t.same(asked, [['orders:ada'], ['orders:*']])
    for (const user of ['grace', 'ada']) await app.sse.broadcastEvent({ event: 'order', data: user }, { subscriptionIds: [`orders:${user}`] })
    t.same((await staff.collect(2, 'order')).map(({ data }) => data), ['grace', 'ada'])
    t.equal((await ada.next('order')).data, 'ada')
    await t.rejects(app.sse.getConnectionsByUser('ada')[0]!.addSubscription('orders:grace'), { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' })
  },

  async 'order-dashboard-sign-in' (t) {
    const app = bare(t)
    let user: string | null = 'ada'
    await app.register(ssePlugin, { path: '/orders', retryMs: 100, requireAuthentication: true, authHandler: () => user })
    const { Source } = eventSourceOf(t, await listen(app))
    let signIns = 0
    const { attach } = await run(t, { EventSource, signIn: () => { signIns++ } }, [], text => `export function attach (source) {\n${text.replace(/export \{.*\}\s*$/, '')}\n}`)
    const connect = async () => {
      const source = new Source('/orders')
      attach(source)
      await until(() => app.sse.connectionCount === 1)
      return source
    }
    const signedOut = await connect()
    await app.sse.disconnectUser('ada')
    await until(() => signIns === 1)
    t.equal(signedOut.readyState, EventSource.CLOSED)

    const expired = await connect()
    user = null
    for (const connection of app.sse.connections()) connection.close('max-age')
    await until(() => signIns === 2)
    t.equal(expired.readyState, EventSource.CLOSED)
  },

  async 'rendered-page' (t) {
    const order = { id: '"1"', item: '<tea>', state: 'placed', version: 1 }
    let loads = 0
    const { app, url, publish } = await startRenderedPage(t, async () => {
      loads++
      // Changed between the position and the state.
      if (loads === 1) await publish({ ...order, version: 2 })
      return [{ ...order, version: 2 }]
    })
    const html = await (await fetch(url)).text()
    const line = '<li id="order-&#34;1&#34;" data-version="2">&#60;tea&#62;: placed</li>'
    t.match(html, line, 'escaped')
    const position = /data-position="(.*?)"/.exec(html)![1]!
    const stream = await visit(t, `${url}/orders?lastEventId=${encodeURIComponent(position)}`)
    t.equal((await stream.next('order')).data, line, 'what follows the position')
    t.equal(loads, 1, 'the state is not loaded again')

    await forceGap(app)
    const late = await visit(t, `${url}/orders?lastEventId=${encodeURIComponent(position)}`)
    t.equal((await late.next('orders')).data, line)
    t.match(late.named('sse:gap').map(({ json }) => json), [{ reason: 'trimmed', snapshot: true }])
  },

  async 'rendered-page-client' (t) {
    const orders = [{ id: '1', item: 'tea', state: 'packed', version: 2 }, { id: '2', item: 'milk', state: 'placed', version: 1 }]
    const { app, gate, url, publish } = await startRenderedPage(t, async () => orders)
    const page = await browse(t, url)
    if (page === null) return
    const shows = async (...lines: string[]) => t.ok(await until(async () => (await page.locator('#list li').allInnerTexts()).join() === lines.join(), undefined, lines.join()), lines.join())
    await shows('tea: packed', 'milk: placed')
    await until(() => app.sse.connectionCount === 1)
    await publish({ ...orders[0]!, state: 'placed', version: 1 })
    await publish({ ...orders[1]!, state: 'packed', version: 2 })
    await publish({ id: '3', item: 'salt', state: 'placed', version: 1 })
    await shows('tea: packed', 'milk: packed', 'salt: placed')
    await gate.away(app, async () => {
      // Not published: only the list tells it.
      orders.pop()
      await forceGap(app)
    })
    await shows('tea: packed')
  },

  async 'chat-and-state' (t) {
    const app = bare(t)
    await run(t, { app })
    const url = await listen(app)
    const stream = await visit(t, `${url}/room`)
    t.match((await stream.next('poll-state')).json, { yes: 0, no: 0, version: 1 })
    for (const isYes of [true, false, true]) await app.inject({ method: 'POST', url: '/room/votes', payload: { isYes } })
    t.match((await stream.collect(3, 'poll')).at(-1)!.json, { yes: 2, no: 1, version: 4 })
    for (let number = 1; number <= 60; number++) await app.inject({ method: 'POST', url: '/room/messages', payload: { text: `${number}` } })
    t.match((await stream.collect(60, 'chat')).map(({ json }) => json), Array.from({ length: 60 }, (_, i) => ({ number: i + 1, text: `${i + 1}` })))
    const numbers = async (query = '') => (await app.inject(`/room/messages${query}`)).json().map(({ number }: { number: number }) => number)
    t.same(await numbers(), Array.from({ length: 50 }, (_, i) => i + 11), 'the newest')
    t.same(await numbers('?after=5'), Array.from({ length: 50 }, (_, i) => i + 6), 'those that follow')
    t.same(await numbers('?after=60'), [])
  },

  async 'chat-and-state-client' (t) {
    const app = bare(t)
    const gate = new Gate()
    app.addHook('onRequest', gate.hook)
    const start = (t: Test, app: FastifyInstance) =>
      run(t, { app }, ['messages'], text => text.replace('register(ssePlugin)', 'register(ssePlugin, { retryMs: 100, drainMs: 100, history: { maxEvents: 10 } })'), 'chat-and-state') as Promise<{ messages: { number: number, text: string }[] }>
    const { messages } = await start(t, app)
    const url = await listen(app)
    const say = async () => await app.inject({ method: 'POST', url: '/room/messages', payload: { text: '' } })
    for (let i = 0; i < 52; i++) await say()

    const { fetch } = globalThis
    let isDown = false
    const get = async (path: string) => {
      if (isDown) throw new TypeError('fetch failed')
      return await fetch(url + path)
    }
    const { watchRoom, printed } = await run(t, { EventSource: eventSourceOf(t, url).Source, fetch: get }, [])
    const versions: number[] = []
    let shown = ''
    watchRoom({
      showPoll: ({ version }: { version: number }) => { versions.push(version) },
      showChat: (list: { number: number }[]) => { shown = list.map(({ number }) => number).join() }
    })
    const shows = async (from: number, to: number) => {
      const numbers = Array.from({ length: to - from + 1 }, (_, i) => from + i).join()
      t.ok(await until(() => shown === numbers, undefined, numbers), `${from} to ${to}`)
    }
    await shows(3, 52)
    await say()
    await shows(3, 53)
    await app.inject({ method: 'POST', url: '/room/votes', payload: { isYes: true } })
    await app.sse.broadcastEvent({ event: 'poll', data: { version: 1 } }, { subscriptionIds: ['room'] })
    await gate.away(app, say)
    await shows(3, 54)
    t.same(versions, [1, 2], 'an older state is ignored')

    await gate.away(app, async () => {
      isDown = true
      // Not published, and more than one answer has.
      for (let number = 55; number <= 120; number++) messages.push({ number, text: '' })
      await forceGap(app)
      await app.inject({ method: 'POST', url: '/room/votes', payload: { isYes: true } })
    })
    await until(() => versions.at(-1) === 3, undefined, 'the state is replaced')
    await until(() => printed.length > 0, undefined, 'the messages are not loaded')
    await say()
    await until(() => shown.endsWith(',54,121'), undefined, 'a message behind the missing ones')
    isDown = false
    await shows(3, 121)

    await t.test('a restart, after which the versions begin again', async t => {
      const next = await restart(app, async () => {
        const next = bare(t)
        const { messages: stored } = await start(t, next)
        stored.push(...messages)
        return next
      })
      await until(() => versions.at(-1) === 1, undefined, 'the new state')
      await next.inject({ method: 'POST', url: '/room/votes', payload: { isYes: true } })
      await until(() => versions.at(-1) === 2, undefined, 'its change')
      t.same(versions.slice(-2), [1, 2])
      await next.inject({ method: 'POST', url: '/room/messages', payload: { text: '' } })
      await shows(3, 122)
    })
  },

  async 'chat-and-state-gaps' (t) {
    const warnings: string[] = []
    const app = Fastify({ logger: { level: 'warn', stream: { write: (line: string) => { warnings.push(line) } } } })
    t.teardown(() => app.close())
    await app.register(ssePlugin)
    await run(t, { app })
    const url = `${await listen(app)}/room/watched`
    await visit(t, url)
    await visit(t, url, { headers: { 'last-event-id': 'nonsense' } })
    await until(() => warnings.length > 0)
    t.match(warnings.map(line => JSON.parse(line)), [{ msg: 'A client has missed events', reason: 'malformed' }])
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
