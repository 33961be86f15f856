import Fastify from 'fastify'
import fastifyCors from '@fastify/cors'
import fastifyHelmet from '@fastify/helmet'
import type { Page } from 'playwright-core'
import t, { type Test } from 'tap'
import adminPage, { type AdminOptions } from '../../lib/admin/index.js'
import ssePlugin, { SSEManager, type SSEOptions } from '../../lib/index.js'
import { redisStreamsBroker } from '../../lib/redis.js'
import { openStream, type TestStream } from '../../lib/testing/index.js'
import { listen } from '../helpers/app.js'
import { browse, withoutChromium } from '../helpers/browser.js'
import { REPORT, TestLog } from '../helpers/cluster.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

// The page in Chromium.

const EVIL = ['<img src=x onerror="document.title=\'owned\'">', '"><script>document.title="owned"</script>', 'javascript:document.title="owned"', "';document.title='owned';'", '\u202Egnp.exe', '{{constructor}}', '__proto__']

interface Shown {
  app: ReturnType<typeof Fastify>
  url: string
  page: Page
  join (user: string | null, topics?: readonly string[], userAgent?: string): Promise<TestStream>
  faults: string[]
}

async function show (t: Test, { admin = {}, sse = {}, hash = '', csp }: { admin?: Partial<AdminOptions>, sse?: SSEOptions, hash?: string, csp?: 'helmet' } = {}): Promise<Shown> {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyHelmet)
  // As with an application that gives all answers the policy of helmet.
  let policy: unknown
  app.addHook('onRequest', async (_request, reply) => { policy = reply.getHeader('content-security-policy') })
  if (csp === 'helmet') app.addHook('onSend', async (_request, reply) => { reply.header('content-security-policy', policy) })
  await app.register(ssePlugin, { drainMs: 300, authHandler: ({ query }) => query['user'] as string ?? null, ...sse })
  app.get('/sse', { sse: true }, async (request, reply) => {
    await reply.sse({ subscriptions: new URL(request.url, 'http://x').searchParams.getAll('topic') })
  })
  await app.register(adminPage, { path: '/ops/streams', authorize: () => true, actions: true, ...admin })
  const url = await listen(app)
  const page = (await browse(t, 'about:blank'))!
  const faults: string[] = []
  page.on('console', message => { if (message.type() === 'error') faults.push(message.text()) })
  page.on('pageerror', error => { faults.push(String(error)) })
  page.on('dialog', dialog => { faults.push(`dialog: ${dialog.message()}`) })
  await page.goto(`${url}/ops/streams/${hash}`)
  const join: Shown['join'] = (user, topics = [], userAgent = 'test') =>
    openStream(app, `/sse?${new URLSearchParams([...user === null ? [] : [['user', user]], ...topics.map(topic => ['topic', topic])] as [string, string][])}`, { test: t, headers: { 'user-agent': userAgent } })
  return { app, url, page, join, faults }
}

t.test('the admin page in Chromium', { skip: withoutChromium, timeout: 300_000 }, async t => {
  t.test('figures arrive by the stream, under the policy of helmet too', async t => {
    const { page, join, faults, app } = await show(t, { csp: 'helmet' })
    await join('ada', ['news'])
    const policy = (await app.inject({ url: '/ops/streams/' })).headers['content-security-policy']
    t.match(policy, /script-src 'self';/)
    t.notMatch(policy, /'none'; script-src/, 'it is that of helmet')
    await page.getByText('live · node').waitFor()
    await page.locator('.figure', { hasText: 'Connections' }).locator('dd', { hasText: '2' }).waitFor()
    await page.getByText('All nodes answer, and no client is slow.').waitFor()
    await page.getByRole('link', { name: 'news' }).click()
    await page.getByRole('link', { name: 'ada' }).waitFor()
    t.match(page.url(), /#\/connections\?subscription=news$/)
    t.equal(app.sse.connectionCount, 2, 'one stream for the page')
    t.same(faults, [])
  })

  t.test('without a stream, it asks', async t => {
    const { page } = await show(t, { sse: { maxConnections: 1 }, hash: '#/topics' })
    const other = await page.context().browser()!.newPage()
    await page.getByText('live · node').waitFor()
    await other.goto(page.url())
    await other.getByText('every 5 s, without a stream').waitFor()
    await other.getByRole('heading', { name: 'Topics' }).waitFor()
  })

  t.test('while it receives no answer, it does not say that all is well', async t => {
    let down = false
    const { page, app } = await show(t, { sse: { retryMs: 100 }, admin: { authorize: async (_request, reply) => down ? reply.code(502).send() : true } })
    await page.getByText('All nodes answer').waitFor()
    down = true
    for (const { clientId } of (await app.sse.listConnections({})).connections) await app.sse.closeConnection(clientId)
    await page.getByText(/This page receives no answer. What it shows is \d+ s old/).waitFor()
    t.equal(await page.getByText('All nodes answer').count(), 0)
    down = false
    await page.getByText('All nodes answer').waitFor()
    t.equal(await page.getByText('This page receives no answer').count(), 0)
  })

  t.test('names, topics and user agents are texts', async t => {
    const { page, join, faults, app } = await show(t)
    for (const evil of EVIL) await join(evil, [evil.replace(/[\s:*\u202E]/g, '.')], evil.replace('\u202E', ''))
    await app.sse.startRun(EVIL[0]!, async function * ({ signal }: { signal: AbortSignal }) { yield { data: 1 }; await new Promise(resolve => signal.addEventListener('abort', resolve)) }, { ownerId: EVIL[1]! })
    await app.sse.broadcastEvent({ event: 'x', data: 1, key: EVIL[0]! }, { userIds: EVIL })
    for (const section of ['overview', 'connections', 'topics', 'runs', 'events']) {
      await page.goto(page.url().replace(/#.*|$/, `#/${section}`))
      await page.getByText(section === 'events' ? EVIL[0]! : section === 'runs' ? EVIL[1]! : '__proto__').first().waitFor()
      t.equal(await page.locator('main img, main script, main iframe, main a[href^="javascript"]').count(), 0, section)
    }
    await page.goto(page.url().replace(/#.*/, '#/connections'))
    for (const evil of EVIL) {
      await page.goto(page.url().replace(/#.*/, '#/connections'))
      await page.getByRole('link', { name: evil.replace('\u202E', '[U+202E]'), exact: true }).first().click()
      await page.locator('.facts').waitFor()
    }
    for (const parameters of ['userId=%3Cimg%20src%3Dx%20onerror%3Ddocument.title%3D%22owned%22%3E', 'subscription=%3Cscript%3E x', '__proto__=x', 'after=%3Cimg%3E']) {
      await page.goto(page.url().replace(/#.*/, `#/connections?${parameters}`))
      await page.getByText(/connections?\.|Subscription|Option/).first().waitFor()
    }
    t.notMatch(await page.title(), /owned/)
    t.same(faults.filter(fault => !/status of 400/.test(fault)), [])
  })

  t.test('by keyboard: search, open a connection, close it, and see that it has ended', async t => {
    const { page, join, faults, app } = await show(t)
    const stream = await join('ada', ['orders:7', 'orders:**'])
    await join('grace', ['orders:7'])
    await page.getByText('live · node').waitFor()
    t.equal(await page.evaluate('document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "/", bubbles: true, cancelable: true })) ? null : document.activeElement.id'), 'search', 'at once')
    await page.goBack()
    await page.getByRole('heading', { name: 'Nodes' }).waitFor()
    await page.keyboard.press('/')
    await page.keyboard.type('ada')
    await page.keyboard.press('Enter')
    await page.getByText('1 connection.').waitFor()
    await page.getByRole('link', { name: 'ada' }).focus()
    // Updates of the page keep the focus.
    await until(() => page.evaluate('window.seen ??= new MutationObserver(() => { window.changed = true }).observe(document.querySelector("main"), { subtree: true, characterData: true, childList: true }) ?? true; window.changed === true'))
    await until(() => page.evaluate('document.activeElement?.textContent === "ada"'))
    await page.keyboard.press('Enter')
    await page.getByRole('link', { name: 'orders:**' }).waitFor()
    await page.getByRole('button', { name: 'Close connection' }).focus()
    await page.keyboard.press('Enter')
    await page.getByRole('dialog', { name: 'Close this connection?' }).waitFor()
    await page.keyboard.press('Escape')
    await until(() => page.evaluate('!document.querySelector("dialog").open'))
    t.equal(app.sse.getConnectionsByUser('ada').length, 1, 'Escape does nothing')
    await page.keyboard.press('Enter')
    await page.getByRole('button', { name: 'Confirm' }).focus()
    await page.keyboard.press('Enter')
    await page.getByRole('dialog', { name: 'One stream was closed.' }).waitFor()
    await page.keyboard.press('Enter')
    t.match(await stream.ended, { reason: 'closed-by-admin' })
    await page.getByText('ended', { exact: true }).waitFor()
    await page.getByText('The stream has ended.').waitFor()
    t.equal(await page.getByRole('button', { name: 'Close connection' }).count(), 0)
    t.same(faults, [])
  })

  t.test('read-only: no buttons, and a client that becomes slow is shown', async t => {
    const { page, join, app } = await show(t, { admin: { actions: false, payloads: true }, sse: { outboxBytes: 1024, stallTimeoutMs: 0 } })
    const slow = await join('ada')
    slow.freeze()
    // Until the buffers of the kernel are full.
    await until(async () => {
      await app.sse.broadcastEvent({ event: 'large', data: 'x'.repeat(200_000) }, { userIds: ['ada'] })
      return app.sse.stats().lagging === 1
    })
    await page.getByText('1 client is slow').waitFor()
    await page.getByRole('link', { name: 'Show them' }).click()
    await page.getByRole('link', { name: 'ada' }).click()
    await page.getByText('It reads older events from the log.').waitFor()
    t.equal(await page.getByRole('button').count(), 0)
    await page.getByRole('link', { name: 'Events' }).click()
    await page.getByText('Show', { exact: true }).first().click()
    await page.locator('pre', { hasText: 'xxxx' }).first().waitFor()
  })

  t.test('a page of another origin cannot frame it, read it or act', async t => {
    const { page, join, app, url } = await show(t)
    await join('ada')
    const other = Fastify()
    t.teardown(() => other.close())
    await other.register(fastifyCors, { origin: true })
    other.get('/', async (_request, reply) => reply.type('text/html').send(`<iframe src="${url}/ops/streams/"></iframe>`))
    // Another port is another origin of the same site: cookies are sent.
    await page.goto(await listen(other))
    const frame = await until(() => page.frames()[1])
    await until(async () => /chrome-error|about:blank|^$/.test(frame.url()) || await frame.evaluate('document.querySelector("#tabs") === null'))
    t.equal(await frame.locator('#tabs a').count(), 0, 'the frame is empty')
    const results = await page.evaluate(async url => {
      const attempt = (path: string, init: RequestInit) => fetch(url + path, { credentials: 'include', ...init }).then(response => `${response.type} ${response.status}`, () => 'failed')
      const body = JSON.stringify({ userId: 'ada' })
      return [
        await attempt('/ops/streams/api/connections', {}),
        await attempt('/ops/streams/api/disconnect', { method: 'POST', body, headers: { 'content-type': 'application/json', 'x-sse-admin': '1' } }),
        await attempt('/ops/streams/api/disconnect', { method: 'POST', body, mode: 'no-cors' })
      ]
    }, url)
    t.same(results, ['failed', 'failed', 'failed'])
    t.equal(app.sse.getConnectionsByUser('ada').length, 1)
  })

  t.test('what needs attention stays for five minutes, with its age and a count over the time that is named', async t => {
    const { page, app } = await show(t)
    await page.getByText('All nodes answer').waitFor()
    for (let i = 0; i < 3; i++) await openStream(app, '/sse', { test: t, lastEventId: 'not a cursor' })
    await page.getByText(/Clients have gaps, .*: 3 in the last \d+ s\. last \d+ s ago/).waitFor()
    t.equal(await page.getByText('All nodes answer').count(), 0, 'it has just happened')
    await page.clock.install()
    await page.clock.fastForward(60_000)
    await page.getByText(/Clients have gaps, .*: 3 in the last 1 min( \d+ s)?\. last 1 min( \d+ s)? ago/).waitFor()
    await page.getByText('All nodes answer').waitFor()
    await page.clock.fastForward(300_000)
    await until(async () => await page.getByText('Clients have gaps').count() === 0)
  })

  t.test('a node that has closed stays named; while this one does not reach the log, the others are not known, and not called dead', { skip: withoutRedis }, async t => {
    const redis = await RedisServer.start()
    t.teardown(() => redis.stop())
    const options = (nodeName: string): Pick<SSEOptions, 'broker' | 'cluster'> => ({ broker: redisStreamsBroker({ client: redis.url }), cluster: { nodeName, heartbeatIntervalMs: 200 } })
    const other = new SSEManager(options('other'))
    t.teardown(() => other.close())
    await other.open()
    const { page } = await show(t, { sse: options('one') })
    const row = page.locator('tr', { hasText: 'other' })
    await row.getByText('up', { exact: true }).waitFor()
    await redis.kill()
    await row.getByText('not known').waitFor()
    await page.getByText('Node one does not reach the log: it does not know how the other nodes are.').waitFor()
    await page.getByRole('link', { name: 'Connections', exact: true }).click()
    await page.getByText('Incomplete: node one does not reach the log').waitFor()
    await page.getByRole('link', { name: 'Overview' }).click()
    await redis.run()
    await row.getByText('up', { exact: true }).waitFor()
    await page.getByText(/Node one is degraded: .* ago/).waitFor()
    await other.close()
    await page.getByText(/Node other has closed or died\. It had 0 connections\. \d+ s ago/).waitFor()
    await page.getByText('All nodes answer').waitFor()
    t.equal(await page.getByText('does not answer').count(), 0)
  })

  t.test('a node that does not answer is named', async t => {
    const log = new TestLog()
    const { page } = await show(t, { sse: { broker: log, cluster: { answerTimeoutMs: 300 } } })
    await page.getByText('All nodes answer').waitFor()
    await log.hear({ kind: 'beat', report: { ...REPORT, name: 'silent' } })
    await page.getByText(/Node silent does not answer\. .* for \d+ s/).waitFor()
    await page.locator('tr', { hasText: 'silent' }).getByText('no answer').waitFor()
    t.equal(await page.getByText('All nodes answer').count(), 0)
  })

  t.test('a second click on "Confirm" does not repeat the action', async t => {
    const { page, join, app } = await show(t)
    await join('ada')
    const { clientId } = app.sse.getConnectionsByUser('ada')[0]!
    const actions: string[] = []
    page.on('request', request => { if (request.method() === 'POST') actions.push(request.url()) })
    await page.goto(page.url().replace(/#.*|$/, `#/connection?id=${clientId}`))
    await page.getByRole('button', { name: 'Disconnect user' }).click()
    await page.getByRole('button', { name: 'Confirm' }).waitFor()
    await page.evaluate('for (let i = 0; i < 3; i++) [...document.querySelectorAll("dialog button")].at(-1).click()')
    await page.getByRole('dialog', { name: 'One stream was closed.' }).waitFor()
    t.equal(actions.length, 1)
    await page.getByRole('button', { name: 'OK' }).click()
    t.equal(actions.length, 1)
  })
})
