import { readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import type { SnapshotQuestion, SSEConnection } from '../../lib/index.js'
import { serve } from '../helpers/app.js'
import { withoutChromium } from '../helpers/browser.js'
import { buildClient } from '../helpers/client-build.js'
import { browseTabs, type Tab } from '../helpers/tabs.js'
import { until } from '../helpers/wait.js'

// Tabs of a real browser, which hide each other, share a connection.

const PAGE = `<!doctype html><link rel=icon href=data:,><title>tab</title><script type=module>
  import { shareTabs } from '/client/tabs.js'
  const { tab, user, subscriptions } = JSON.parse(decodeURIComponent(location.hash.slice(1)))
  window.signIn = user => {
    window.shown = { seen: [], states: [], snapshots: [], gaps: 0 }
    window.client = shareTabs('/own?user=' + user, { user, subscriptions, headers: { 'x-tab': tab } })
    client.on('n', n => shown.seen.push(n))
    client.on('state', names => shown.snapshots.push(names))
    client.onState(({ name }) => shown.states.push(name))
    client.onGap(() => shown.gaps++)
  }
  signIn(user)
</script>`

interface SharingTab extends Tab {
  readonly name: string
  seen (): Promise<number[]>
}

/** A server, and a browser. */
async function start (t: Test) {
  const directory = dirname(buildClient(t.testdir()))
  const files: Record<string, string> = {}
  for (const file of ['index.js', 'tabs.js']) files[file] = await readFile(join(directory, file), 'utf8')
  const service = await serve(t, {
    path: '/own',
    clientSubscriptions: true,
    authorizeSubscription: () => true,
    authHandler: ({ query, headers }) => ({ userId: String(query['user']), claims: headers['x-tab'] }),
    allowedOrigins: '*',
    snapshot: { load: ({ subscriptions }: SnapshotQuestion) => ({ event: 'state', data: [...subscriptions].sort() }) }
  }, {}, app => {
    // A page in a sandbox has an origin of its own.
    app.addHook('onRequest', async (request, reply) => { reply.headers({ 'access-control-allow-origin': '*', 'access-control-allow-headers': '*' }) })
    app.options('*', (request, reply) => reply.code(204).send())
    app.get('/', (request, reply) => reply.type('text/html').send(PAGE))
    app.get('/client/:file', (request, reply) => reply.type('text/javascript').send(files[(request.params as { file: string }).file]))
  })
  const { app, url } = service
  const openTab = await browseTabs(t)
  let published = 0
  let count = 0
  const connections = (user = 'ada'): SSEConnection[] => app.sse.getConnectionsByUser(user)
  return {
    app,
    connections,
    /** Publishes as many numbers, and returns the last one. */
    async publish (numbers = 1, topic = 'news') {
      for (let i = 0; i < numbers; i++) await app.sse.broadcastEvent({ event: 'n', data: ++published }, { subscriptionIds: [topic] })
      return published
    },
    /** Opens a tab in front of the others, and waits until its client is connected. */
    async open (subscriptions: readonly string[] = ['news'], user = 'ada'): Promise<SharingTab> {
      const name = String(++count)
      const tab = await openTab(`${url}/#${encodeURIComponent(JSON.stringify({ tab: name, user, subscriptions }))}`)
      await until(async () => await tab.evaluate('window.client?.state.name') === 'open', undefined, `tab ${name} is connected`)
      return { ...tab, name, seen: () => tab.evaluate('shown.seen') }
    },
    /** Waits until one tab reads, and returns it. */
    async leader (tabs: readonly SharingTab[], user = 'ada'): Promise<SharingTab> {
      return await until(() => connections(user).length === 1 ? tabs.find(({ name }) => name === connections(user)[0]!.claims) : undefined, undefined, 'one tab reads')
    }
  }
}

/** The numbers from one to another. */
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)

async function receive (t: Test, tabs: readonly SharingTab[], from: number, to: number): Promise<void> {
  for (const tab of tabs) {
    await until(async () => (await tab.seen()).at(-1) === to, undefined, `tab ${tab.name} receives ${to}`)
    t.same(await tab.seen(), range(from, to), `tab ${tab.name}`)
    t.equal(await tab.evaluate('shown.gaps'), 0)
  }
}

t.test('tabs', { skip: withoutChromium, timeout: 240_000 }, async t => {
  await t.test('eight tabs hold one connection, and another one takes over', async t => {
    const { connections, open, publish, leader } = await start(t)
    const tabs: SharingTab[] = []
    for (let i = 0; i < 8; i++) tabs.push(await open())
    await until(() => connections().length === 1)
    await publish(3)
    await receive(t, tabs, 1, 3)
    t.equal(connections().length, 1)
    t.ok((await tabs[7]!.evaluate('shown.snapshots')).length > 0, 'the last tab has the state')

    /** Something happens to the tab that reads, while events are published: the others have all of them. */
    const without = async (what: string, happen: (tab: SharingTab) => Promise<unknown>, limitMs: number) => {
      const gone = await leader(tabs)
      tabs.splice(tabs.indexOf(gone), 1)
      await tabs.at(-1)!.show()
      await until(async () => await gone.evaluate('document.visibilityState') === 'hidden')
      await publish(2)
      await happen(gone)
      const since = performance.now()
      await publish(2)
      await until(() => connections().some(({ claims }) => claims !== gone.name), 30_000, 'another tab reads')
      const ms = Math.round(performance.now() - since)
      t.comment(`${what}: another tab reads after ${ms} ms`)
      t.ok(ms < limitMs, `${ms} ms`)
      await receive(t, tabs, 1, await publish(2))
      return gone
    }

    await without('closed', tab => tab.close(), 10_000)
    t.equal(connections().length, 1)
    await without('crashed', async tab => { tab.call('Page.crash').catch(() => {}) }, 10_000)
    await until(() => connections().length === 1)
    const frozen = await without('frozen', tab => tab.call('Page.setWebLifecycleState', { state: 'frozen' }), 10_000)
    await frozen.call('Page.setWebLifecycleState', { state: 'active' })
    tabs.push(frozen)
    await receive(t, tabs, 1, await publish(2))
    await until(() => connections().length === 1, undefined, 'the frozen tab has stopped to read')
    const busy = await without('busy', async tab => { tab.evaluate('{ const end = Date.now() + 5000; while (Date.now() < end); }') }, 10_000)
    tabs.push(busy)
    await receive(t, tabs, 1, await publish(2))
    await until(() => connections().length === 1)
  })

  await t.test('the subscriptions of all tabs, and the state of what a tab adds', async t => {
    const { app, connections, open, publish, leader } = await start(t)
    const holds = async (...topics: string[]) => { await until(() => connections().length === 1 && String([...connections()[0]!.subscriptions].sort()) === String(topics), undefined, `the connection holds ${topics}`) }
    const snapshots = async (tab: SharingTab) => await tab.evaluate('shown.snapshots')
    const first = await open(['a'])
    await holds('a')
    await publish(1, 'a')
    await receive(t, [first], 1, 1)
    const second = await open(['b'])
    await holds('a', 'b')
    await until(async () => (await snapshots(second)).length > 0)
    t.same(await snapshots(second), [['b']])
    await publish(1, 'a')
    await publish(1, 'b')
    await receive(t, [first], 1, 3)
    await receive(t, [second], 2, 3)

    await second.evaluate("client.setSubscriptions(['b', 'c'])")
    await holds('a', 'b', 'c')
    await until(async () => (await snapshots(second)).length === 2)
    t.same((await snapshots(second))[1], ['c'])
    await first.evaluate("client.setSubscriptions(['d'])")
    await holds('b', 'c', 'd')
    await publish(1, 'c')
    await publish(1, 'd')
    await receive(t, [first], 1, 5)
    await receive(t, [second], 2, 5)
    t.equal((await leader([first, second])).name, first.name)

    const third = await open(['b'])
    await until(async () => (await snapshots(third)).length > 0)
    t.same(await snapshots(third), [['b']], 'a tab with known topics begins with their state')
    await holds('b', 'c', 'd')
    await second.close()
    await holds('b', 'd')
    third.call('Page.crash').catch(() => {})
    await holds('d')
    await first.evaluate('client.close()')
    await until(() => app.sse.connectionCount === 0)
  })

  await t.test('another user, and a change of the user', async t => {
    const { app, connections, open, publish } = await start(t)
    const [first, second] = [await open(), await open()]
    const other = await open(['news'], 'bob')
    t.equal(connections('ada').length, 1)
    t.equal(connections('bob').length, 1)
    await publish(1)
    await app.sse.broadcastEvent({ event: 'n', data: 'for ada' }, { userIds: ['ada'] })
    await publish(1)
    await receive(t, [other], 1, 2)
    for (const tab of [first, second]) {
      await until(async () => (await tab.seen()).length === 3)
      t.same(await tab.seen(), [1, 'for ada', 2])
    }

    await first.evaluate("client.close(); signIn('bob')")
    await until(async () => await first.evaluate('client.state.name') === 'open')
    await until(() => connections('ada').length === 1 && connections('ada')[0]!.claims === second.name, undefined, 'the other tab of the first user reads')
    t.equal(connections('bob').length, 1)
    await app.sse.broadcastEvent({ event: 'n', data: 'for ada' }, { userIds: ['ada'] })
    await publish(1)
    await until(async () => (await first.seen()).length === 1)
    t.same(await first.seen(), [3], 'nothing of the first user')
    await second.evaluate('client.close()')
    await until(() => connections('ada').length === 0, undefined, 'the last tab of a user closes the connection')
    await other.close()
    await until(() => connections('bob')[0]?.claims === first.name)
    await publish(1)
    await receive(t, [first], 3, 4)
  })

  await t.test('a client that is closed at once does not keep others from reading', async t => {
    const { open } = await start(t)
    const tab = await open()
    await tab.evaluate(`(async () => {
      for (let turns = 0; turns < 8; turns++) {
        signIn('bob')
        for (let i = 0; i < turns; i++) await null
        client.close()
      }
      signIn('bob')
    })()`)
    await until(async () => await tab.evaluate('client.state.name') === 'open', undefined, 'the last client reads')
  })

  await t.test('a frame in a sandbox may not use locks, and has a connection of its own', async t => {
    const { open, connections } = await start(t)
    const tab = await open()
    const frame = `${JSON.stringify({ tab: 'frame', user: 'bob', subscriptions: ['news'] })}`
    await tab.evaluate(`{ const frame = document.createElement('iframe'); frame.sandbox = 'allow-scripts'; frame.src = '/?frame#${encodeURIComponent(frame)}'; document.body.append(frame) }`)
    await until(() => connections('bob').length === 1, undefined, 'the frame is connected')
    t.equal(connections('bob')[0]!.claims, 'frame')
  })

  await t.test('a server that is away, and that refuses', async t => {
    const { app, connections, open, publish, leader } = await start(t)
    const tabs = [await open(), await open(), await open()]
    await publish(1)
    await receive(t, tabs, 1, 1)
    const reader = await leader(tabs)
    app.sse.closeConnection(connections()[0]!.clientId, 'max-age')
    for (const tab of tabs) await until(async () => (await tab.evaluate('shown.states')).includes('waiting'), undefined, 'all tabs show it')
    await publish(1)
    await reader.evaluate('client.reconnect()')
    await receive(t, tabs, 1, 2)
    for (const tab of tabs) t.equal(await tab.evaluate('client.state.name'), 'open')
    t.equal(connections().length, 1)
    await app.sse.disconnectUser('ada', 'kicked')
    for (const tab of tabs) {
      await until(async () => await tab.evaluate('client.state.name') === 'closed')
      t.same(await tab.evaluate('client.state'), { name: 'closed', reason: 'kicked' })
    }
  })
})
