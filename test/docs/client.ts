import { readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { build } from 'esbuild'
import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import type { ClientState } from '../../lib/client/index.js'
import ssePlugin, { SSEManager } from '../../lib/index.js'
import { connect, script, status, stream, testClock, timed } from '../client/clients.js'
import { listen, serve } from '../helpers/app.js'
import { browse } from '../helpers/browser.js'
import { buildClient } from '../helpers/client-build.js'
import { transpile } from '../helpers/compiler.js'
import { ROOT, sampleOf } from '../helpers/pages.js'
import { Hand } from '../helpers/runs.js'
import { at, bare, run, visit, type Drivers } from '../helpers/samples.js'
import { until } from '../helpers/wait.js'

const LIB = JSON.stringify(pathToFileURL(`${ROOT}/lib/client/index.js`).href)
const LIB_TABS = JSON.stringify(pathToFileURL(`${ROOT}/lib/client/tabs.js`).href)

const open = (client: { state: ClientState }) => until(() => client.state.name === 'open', undefined, 'the client is open')

async function serveClients (t: Test): Promise<{ app: FastifyInstance, url: string }> {
  return await serve(t, { path: '/own', clientSubscriptions: true, authorizeSubscription: () => true })
}

/** Of the samples in docs/guides/client.md and docs/guides/connection-state.md, and of the client in docs/recipes/other-origin.md. */
export const DRIVERS: Drivers = {
  async 'client-file' (t) {
    const app = bare(t)
    const built = pathToFileURL(buildClient(t.testdir())).href
    await run(t, { app }, [], text => text.replace(LIB, JSON.stringify(built)))
    const answer = await visit(t, `${await listen(app)}/sse-client.js`)
    t.equal(answer.status, 200)
    t.match(answer.headers['content-type'], /^text\/javascript/)
    t.match(answer.text, /createClient/)
  },

  async 'client-page' (t) {
    const { app, url } = await serveClients(t)
    const shown: unknown[] = []
    const note = (...values: unknown[]) => { shown.push(values) }
    const { client } = await run(t, { showOrder: note, showPrices: note, showMessage: note, reloadState: () => note('reload') }, ['client'], text => text.replace("'/sse-client.js'", LIB).replace("'/sse'", `'${url}/own'`))
    t.teardown(() => client.close())
    await open(client)
    await app.sse.broadcastEvent({ event: 'order-paid', data: { id: 7 } }, { subscriptionIds: ['orders:acme'] })
    await app.sse.broadcastEvent({ event: 'order-paid', data: { id: 8 } }, { subscriptionIds: ['orders:other'] })
    await app.sse.broadcastData('prices', { tea: 1 })
    await app.sse.broadcastNotification({ title: 'Hey', message: 'you' })
    await until(() => shown.length === 3)
    t.same(shown, [[{ id: 7 }], [{ tea: 1 }], ['Hey', 'you']])
  },

  async 'client-events' (t) {
    const { events } = await run(t)
    const sse = new SSEManager({ events })
    t.teardown(() => sse.close())
    await t.rejects(sse.broadcastEvent({ event: 'chat_message', data: {} }), { code: 'SSE_ERR_INVALID_PAYLOAD' })
  },

  async 'client-typed' (t) {
    const { app, url } = await serve(t)
    const { client, printed } = await run(t, {}, [], text => text.replace('http://localhost:3000', url))
    t.teardown(() => client.close())
    await open(client)
    await app.sse.broadcastEvent({ event: 'chat_message', data: { room: 'general', text: 'hello' } })
    await app.sse.broadcastData('prices', { tea: 1.5 })
    await until(() => printed.length === 2)
    t.same(printed, [['general', 'hello'], ['1.50']])
  },

  async 'client-state' (t) {
    const { describe } = await run(t)
    const states: [ClientState, string][] = [
      [{ name: 'open' }, 'Live'], [{ name: 'connecting' }, 'Connecting …'], [{ name: 'waiting', retryInMs: 2_100, reason: 'network' }, 'Connecting again in 3 s'],
      [{ name: 'waiting', retryInMs: null, reason: 'hidden' }, 'Paused'], [{ name: 'closed', reason: 'refused', status: 401, code: 'SSE_ERR_UNAUTHENTICATED' }, 'Please sign in'],
      [{ name: 'closed', reason: 'kicked' }, 'Disconnected: kicked'], [{ name: 'closed', reason: 'refused', status: 403, code: 'SSE_ERR_ORIGIN_FORBIDDEN' }, 'Disconnected: SSE_ERR_ORIGIN_FORBIDDEN']
    ]
    for (const [state, text] of states) t.equal(describe(state), text)
  },

  async 'client-status' (t) {
    const clock = testClock()
    const server = await script(t, status(503), stream(': stream\n\n'), status(401))
    const ticks: (() => void)[] = []
    let now = 0
    const time = {
      setInterval: (tick: () => void) => ticks.push(tick),
      clearInterval: () => { ticks.length = 0 },
      Date: { now: () => now }
    }
    const { showConnection } = await run(t, { time }, [], text => text.replace(/^import .*$/m, `${transpile(sampleOf('client-state'))}\nconst { setInterval, clearInterval, Date } = time`))
    const text = { textContent: '' }
    const button = { hidden: true, onclick: () => {} }
    // Synchronously: the client has no answer yet.
    const { client, become } = connect(t, server.url, timed(clock))
    showConnection(client, text, button)
    t.same([text.textContent, button.hidden], ['Connecting …', true])
    const { retryInMs } = await become('waiting')
    t.same([text.textContent, button.hidden, ticks.length], [`Connecting again in ${Math.ceil(retryInMs! / 1_000)} s`, false, 1])
    now = retryInMs! - 900
    ticks[0]!()
    t.equal(text.textContent, 'Connecting again in 1 s')
    now += 5_000
    ticks[0]!()
    t.equal(text.textContent, 'Connecting again in 0 s')
    button.onclick()
    await become('open')
    t.same([text.textContent, button.hidden, ticks.length], ['Live', true, 0])
    client.reconnect()
    await become('closed')
    t.same([text.textContent, button.hidden, ticks.length], ['Please sign in', false, 0])
  },

  async 'client-token' (t) {
    const app = bare(t)
    let valid = 'token-1'
    await app.register(ssePlugin, { path: '/sse', retryMs: 100, requireAuthentication: true, authHandler: ({ token }) => token === valid ? 'ada' : null })
    const url = `${await listen(app)}/sse`
    const { connect } = await run(t)
    let count = 0
    const client = connect(url, { fresh: async (signal: AbortSignal) => signal.aborted ? null : `token-${++count}` })
    t.teardown(() => client.close())
    const seen: unknown[] = []
    client.on('x', (data: unknown) => { seen.push(data) })
    await open(client)
    await app.sse.broadcastEvent({ event: 'x', data: 1 })
    await until(() => seen.length === 1)
    valid = 'token-2'
    app.sse.getConnectionsByUser('ada')[0]!.close('auth-expired')
    await app.sse.broadcastEvent({ event: 'x', data: 2 })
    await until(() => seen.length === 2, undefined, 'the new token continues at the old position')
    const signedOut = connect(url, { fresh: async () => null })
    await until(() => signedOut.state.name === 'closed')
    t.match(signedOut.state, { reason: 'no-credentials' })
  },

  async 'client-loop' (t) {
    const { app, url } = await serve(t)
    const { createClient } = await import('../../lib/client/index.js')
    const client = createClient(`${url}/sse`)
    const { follow } = await run(t)
    const shown: string[] = []
    const following = follow(client, (text: string) => { shown.push(text) })
    await open(client)
    await app.sse.broadcastEvent({ event: 'chat_message', data: { room: 'general', text: 'hello' } })
    await until(() => shown.length === 1)
    client.close()
    await following
    t.same(shown, ['hello'])
  },

  async 'client-run' (t) {
    const app = bare(t)
    const hand = new Hand()
    await app.register(ssePlugin)
    app.post('/answers/:id', { sse: true }, async (request, reply) => await reply.sse((await app.sse.startRun((request.params as { id: string }).id, hand.factory, { ownerId: null })).run))
    const { ask } = await run(t)
    const shown: unknown[] = []
    const asking = ask(`${await listen(app)}/answers/1`, 'Why?', (token: string | null) => { shown.push(token) })
    hand.yield('Because', '1')
    hand.end()
    await asking
    t.same(shown, ['Because', '1'])
  },

  async 'client-tabs-files' (t) {
    const app = bare(t)
    const built = pathToFileURL(dirname(buildClient(t.testdir()))).href
    await run(t, { app }, [], text => text.replace(LIB, JSON.stringify(`${built}/index.js`)).replace(LIB_TABS, JSON.stringify(`${built}/tabs.js`)))
    const url = await listen(app)
    t.match((await visit(t, `${url}/sse/index.js`)).text, /createClient/)
    t.match((await visit(t, `${url}/sse/tabs.js`)).text, /shareTabs/)
  },

  async 'client-tabs' (t) {
    const built = dirname(buildClient(t.testdir()))
    const { app, url } = await serve(t, { path: '/events', clientSubscriptions: true, authorizeSubscription: () => true }, {}, app => {
      app.get('/sse/:file', async (request, reply) => reply.type('text/javascript').send(await readFile(join(built, (request.params as { file: string }).file))))
      app.get('/', (request, reply) => reply.type('text/html').send(`<!doctype html><link rel=icon href=data:,><title>tab</title><script type=module>
        const showOrder = ({ id }) => { document.title = 'paid ' + id }
        ${sampleOf('client-tabs').text}
        window.client = client</script>`))
    })
    const page = await browse(t, url)
    if (page === null) return
    const context = await page.context().browser()!.newContext()
    const pages = [await context.newPage(), await context.newPage()]
    await page.close()
    for (const page of pages) await page.goto(url)
    for (const page of pages) await until(async () => await page.evaluate('window.client?.state.name') === 'open')
    t.equal(app.sse.connectionCount, 1)
    await app.sse.broadcastEvent({ event: 'order-paid', data: { id: 7 } }, { subscriptionIds: ['orders:acme'] })
    for (const page of pages) await until(async () => await page.title() === 'paid 7', undefined, 'each tab shows the order')
  },

  async 'client-react' (t) {
    const bundle = await build({
      stdin: {
        contents: `${sampleOf('client-react').text}\nimport { createRoot } from 'react-dom/client'\ncreateRoot(document.body).render(<Prices />)`,
        resolveDir: ROOT,
        loader: 'jsx'
      },
      bundle: true,
      write: false,
      jsx: 'automatic',
      define: { 'process.env.NODE_ENV': '"production"' },
      alias: { 'fastify-sse-manager/client': `${ROOT}/lib/client/index.ts` }
    })
    const app = bare(t)
    await app.register(ssePlugin, { path: '/sse', clientSubscriptions: true, authorizeSubscription: () => true })
    app.get('/', (request, reply) => reply.type('text/html').send('<!doctype html><link rel=icon href=data:,><meta charset=utf-8><body></body><script src=/page.js></script>'))
    app.get('/page.js', (request, reply) => reply.type('text/javascript').send(bundle.outputFiles[0]!.text))
    const page = await browse(t, await listen(app))
    if (page === null) return
    const shows = (text: string) => until(async () => await page.evaluate('document.body.textContent') === text, undefined, `the page shows ${text}`)
    await until(() => app.sse.connectionCount === 1)
    await app.sse.broadcastData('prices', { tea: 2 }, { subscriptionIds: ['prices'] })
    await shows('Tea costs 2')
    app.sse.connections().next().value!.close('kicked')
    await shows('Not connected')
    t.pass('the page follows the client')
  },

  async 'other-origin-client' (t) {
    const built = await readFile(buildClient(t.testdir()), 'utf8')
    const pages = bare(t)
    pages.get('/', (request, reply) => reply.type('text/html').send('<!doctype html><link rel=icon href=data:,><title>page</title>'))
    pages.get('/client.js', (request, reply) => reply.type('text/javascript').send(built))
    const origin = await listen(pages)
    const session = { userId: 'user123', expiresAt: Date.now() + 60_000, role: 'guest' }
    const { app } = await run(t, { findSession: async (id: string | undefined) => id === 'abc' ? session : null }, ['app'], text => text.replace('http://localhost:5173', origin), 'other-origin')
    t.teardown(() => app.close())
    const page = await browse(t, origin)
    if (page === null) return
    const sample = transpile(sampleOf('other-origin-client')).replace(LIB, "'/client.js'").replaceAll('export', '')
    await page.addScriptTag({ type: 'module', content: `${sample}\nwindow.seen = []\nwindow.client = connect('${at(app.server)}/sse')\nclient.on('x', n => seen.push(n))` })
    const becomes = (name: string) => until(async () => await page.evaluate('window.client?.state.name') === name, undefined, `the client is ${name}`)
    await becomes('closed')
    t.match(await page.evaluate('client.state'), { reason: 'refused', status: 401, code: 'SSE_ERR_UNAUTHENTICATED' }, 'the page may read why')

    await page.context().addCookies([{ name: 'session', value: 'abc', url: at(app.server) }])
    await page.evaluate('client.reconnect()')
    await becomes('open')
    const subscriptionIds = ['user:user123:x']
    await app.sse.broadcastEvent({ event: 'x', data: 1 }, { subscriptionIds })
    await until(async () => (await page.evaluate<unknown[]>('seen')).length === 1)
    app.sse.connections().next().value!.close('closed')
    await becomes('closed')
    await app.sse.broadcastEvent({ event: 'x', data: 2 }, { subscriptionIds })
    // With a cursor, after a preflight.
    await page.evaluate('client.reconnect()')
    await until(async () => (await page.evaluate<unknown[]>('seen')).length === 2)
    t.same(await page.evaluate('seen'), [1, 2])
  }
}
