import { readFile } from 'node:fs/promises'
import { chromium, type Page } from 'playwright-core'
import t from 'tap'
import { serve } from '../helpers/app.js'
import { CHROMIUM, withoutChromium } from '../helpers/browser.js'
import { buildClient } from '../helpers/client-build.js'
import { Network } from '../helpers/network.js'
import { browseTabs } from '../helpers/tabs.js'
import { until } from '../helpers/wait.js'

// The built file in a real browser, imported by a page without a build step.

/** What a page shows of its client. */
interface Shown { seen: number[], states: string[], persisted: boolean }

const PAGE = `<!doctype html><link rel=icon href=data:,><title>client</title><script type=module>
  import { createClient } from '/client.js'
  window.shown = { seen: [], states: [], persisted: false }
  window.client = createClient('/sse' + location.search, { subscriptions: ['news'], ...JSON.parse(decodeURIComponent(location.hash.slice(1) || '{}')) })
  client.on('n', n => shown.seen.push(n))
  client.onState(({ name, reason = '' }) => shown.states.push(name + ' ' + reason))
  addEventListener('pageshow', ({ persisted }) => { shown.persisted = persisted })
</script>`
const WORKER = `
  import { createClient } from '/client.js'
  const client = createClient('/sse?user=worker')
  client.on('n', n => postMessage(n))
  client.onState(({ name }) => postMessage(name))`

t.test('Chromium', { skip: withoutChromium, timeout: 120_000 }, async t => {
  const file = await readFile(buildClient(t.testdir()), 'utf8')
  // A client that waits for its time is not seen again in this test: what connects it is the page.
  const service = await serve(t, { retryMs: 600_000, path: '/own' }, {}, app => {
    app.get('/', (request, reply) => reply.type('text/html').send(PAGE))
    app.get('/other', (request, reply) => reply.type('text/html').send('<!doctype html><link rel=icon href=data:,><title>other</title>'))
    app.get('/client.js', (request, reply) => reply.type('text/javascript').send(file))
    app.get('/worker.js', (request, reply) => reply.type('text/javascript').send(WORKER))
  })
  const { app } = service
  const network = await Network.start(t, Number(new URL(service.url).port))
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-dev-shm-usage'], ignoreDefaultArgs: ['--disable-back-forward-cache'] })
  t.teardown(() => browser.close())
  const context = await browser.newContext()

  let published = 0
  const publish = async () => { await app.sse.broadcastEvent({ event: 'n', data: ++published }) }
  const shown = async (page: Page) => await page.evaluate<Shown>('shown')
  const open = async (user: string, options: object = {}): Promise<Page> => {
    const page = await context.newPage()
    await page.goto(`${network.url}/?user=${user}#${encodeURIComponent(JSON.stringify(options))}`)
    await isOpen(page)
    return page
  }
  const isOpen = async (page: Page) => { await until(async () => await page.evaluate('window.client?.state.name') === 'open', undefined, 'the page is connected') }
  const receives = async (page: Page, numbers: number[]) => {
    await until(async () => (await shown(page)).seen.length >= numbers.length, undefined, `the page receives ${numbers}`)
    t.same((await shown(page)).seen, numbers)
  }

  await t.test('a page receives events, and connects at once when the network is back', async t => {
    const page = await open('online')
    await publish()
    await receives(page, [1])
    await context.setOffline(true)
    network.reset()
    await until(async () => await page.evaluate('client.state.name') === 'waiting')
    await publish()
    await context.setOffline(false)
    await receives(page, [1, 2])
    await page.close()
  })

  await t.test('the back-forward cache', async t => {
    const page = await open('cached')
    await publish()
    await receives(page, [3])
    await page.goto(`${network.url}/other`)
    await until(() => app.sse.getConnectionsByUser('cached').length === 0, undefined, 'a page in the cache has no stream')
    await publish()
    // A page from the cache fires no `load`.
    await page.goBack({ waitUntil: 'commit' })
    await isOpen(page)
    t.equal((await shown(page)).persisted, true, 'the page comes from the cache')
    await receives(page, [3, 4])
    await page.close()
  })

  await t.test('a reload continues after the cursor', async t => {
    const page = await open('reload', { persist: 'session' })
    await publish()
    await receives(page, [5])
    await page.goto(`${network.url}/other`)
    await publish()
    await page.goto(`${network.url}/?user=reload#${encodeURIComponent('{"persist":"session"}')}`)
    await receives(page, [6])
    await page.close()
  })

  await t.test('a hidden tab keeps its stream, unless it is told otherwise', async t => {
    const openTab = await browseTabs(t)
    const urlOf = (user: string, options: object) => `${network.url}/?user=${user}#${encodeURIComponent(JSON.stringify(options))}`
    const paused = await openTab(urlOf('paused', { pauseWhenHidden: true }))
    await until(() => app.sse.getConnectionsByUser('paused').length === 1)
    const kept = await openTab(urlOf('kept', {}))
    await until(() => app.sse.getConnectionsByUser('kept').length === 1)
    await until(() => app.sse.getConnectionsByUser('paused').length === 0, undefined, 'the tab behind has no stream')
    t.equal(await paused.evaluate('shown.states.at(-1)'), 'waiting hidden')
    await paused.show()
    await until(() => app.sse.getConnectionsByUser('paused').length === 1)
    await until(async () => await kept.evaluate('document.visibilityState') === 'hidden')
    await kept.show()
    await until(() => app.sse.getConnectionsByUser('paused').length === 0)
    await publish()
    await until(async () => (await kept.evaluate('shown.seen')).length === 1)
    t.same(await kept.evaluate('shown.states'), ['open '])
    await paused.show()
    await until(async () => (await paused.evaluate('shown.seen')).length === 1, undefined, 'what was published meanwhile is received')
    t.same(await paused.evaluate('shown.seen'), [published])
  })

  await t.test('a worker', async t => {
    const page = await open('page')
    await page.evaluate("window.posted = []; window.worker = new Worker('/worker.js', { type: 'module' }); worker.onmessage = ({ data }) => posted.push(data)")
    await until(async () => (await page.evaluate<unknown[]>('posted')).includes('open'))
    await publish()
    await until(async () => (await page.evaluate<unknown[]>('posted')).length === 2)
    t.same(await page.evaluate('posted'), ['open', published])
  })
})
