import t, { type Test } from 'tap'
import { EventPriority, type SnapshotQuestion, type SSEOptions } from '../../lib/index.js'
import { shareTabs, type ShareTabsOptions } from '../../lib/client/tabs.js'
import { covers } from '../../lib/client/tabs/cursors.js'
import type { Message } from '../../lib/client/tabs/messages.js'
import { Reading, Recent } from '../../lib/client/tabs/reading.js'
import { Relay } from '../../lib/client/tabs/relay.js'
import { serve } from '../helpers/app.js'
import { setGlobals } from '../helpers/globals.js'
import { until } from '../helpers/wait.js'
import { WebLocks } from '../helpers/web-locks.js'

// Clients of one process, which have a page's globals, share a connection. test/client/tabs.ts has real tabs.

class Document extends EventTarget {
  visibilityState = 'visible'
  readonly baseURI = 'http://localhost/'
}

async function start (t: Test, options: SSEOptions = {}) {
  const locks = new WebLocks()
  const document = new Document()
  setGlobals(t, { navigator: { locks }, location: { href: 'http://localhost/' }, document })
  const service = await serve(t, {
    path: '/own',
    clientSubscriptions: true,
    authorizeSubscription: () => true,
    snapshot: { load: ({ subscriptions, reason }: SnapshotQuestion) => ({ event: 'state', data: [reason, ...[...subscriptions].sort()] }) },
    ...options
  })
  const { app } = service
  const url = `${service.url}/own?user=ada`
  const name = `fastify-sse-manager tabs 1 ${JSON.stringify(['ada', url])}`
  let published = 0
  return {
    app,
    document,
    locks,
    name,
    async publish (topic = 'news', priority: EventPriority = EventPriority.NORMAL) {
      await app.sse.broadcastEvent({ event: 'n', data: ++published, priority }, { subscriptionIds: [topic] })
    },
    connect (subscriptions: readonly string[] = ['news'], options: Partial<ShareTabsOptions> = {}) {
      const client = shareTabs(url, { user: 'ada', subscriptions, ...options })
      t.teardown(() => client.close())
      const seen: number[] = []
      const snapshots: unknown[] = []
      client.on('n', n => { seen.push(n) })
      client.on('state', names => { snapshots.push(names) })
      return { client, seen, snapshots, isOpen: () => until(() => client.state.name === 'open', undefined, 'the client is open') }
    },
    holds: async (...topics: string[]) => {
      await until(() => app.sse.connectionCount === 1 && String([...[...app.sse.connections()][0]!.subscriptions].sort()) === String(topics), undefined, `one connection holds ${topics}`)
    },
    connected: async (count: number) => { await until(() => app.sse.connectionCount === count, undefined, `${count} connections`) }
  }
}

t.test('clients share a connection, and the next one continues', async t => {
  const { connect, publish, connected, holds } = await start(t)
  const first = connect(['a'])
  await until(() => first.snapshots.length === 1)
  const second = connect(['b'])
  await until(() => second.snapshots.length === 1)
  await holds('a', 'b')
  t.same(second.snapshots, [['added', 'b']])
  await publish('a')
  await publish('b')
  await until(() => second.seen.length === 2 && first.seen.length === 2)
  second.client.setSubscriptions(['b', 'c'])
  await holds('a', 'b', 'c')
  first.client.setSubscriptions(['a', 'd'])
  await holds('a', 'b', 'c', 'd')
  await publish('d')
  await until(() => first.seen.length === 3 && second.seen.length === 3)
  first.client.close()
  await holds('b', 'c')
  await publish('c')
  await until(() => second.seen.length === 4)
  t.same(second.seen, [1, 2, 3, 4])
  second.client.close()
  await connected(0)
})

t.test('a tab that subscribes again receives the state again', async t => {
  const { connect, holds } = await start(t)
  const first = connect(['a'])
  await until(() => first.snapshots.length === 1)
  const second = connect(['a', 'b'])
  await until(() => second.snapshots.length === 1)
  second.client.setSubscriptions(['b'])
  await second.isOpen()
  await holds('a', 'b')
  second.client.setSubscriptions(['a', 'b'])
  await until(() => second.snapshots.length === 2)
  t.same(second.snapshots[1], ['added', 'a'])
})

t.test('a client whose position is not kept reads for all, and nothing is repeated to the others', async t => {
  const { app, connect, publish, connected } = await start(t)
  const position = app.sse.position()
  await publish()
  await publish('news', EventPriority.HIGH)
  const first = connect()
  await first.isOpen()
  await publish()
  await publish('news', EventPriority.HIGH)
  await until(() => first.seen.length === 2)
  const second = connect(['news'], { lastEventId: position })
  await until(() => second.seen.length === 4)
  t.same([...second.seen].sort(), [1, 2, 3, 4])
  await publish()
  await until(() => second.seen.length === 5 && first.seen.length === 3)
  t.same(first.seen, [3, 4, 5])
  await connected(1)
})

t.test('a tab that does not answer is replaced, and one whose lock was stolen continues', async t => {
  const { connect, publish, connected, locks, name } = await start(t)
  const replaced = t.rejects(locks.request(name, {}, () => new Promise(() => {})), { name: 'AbortError' })
  const { client, seen, isOpen } = connect()
  await isOpen()
  await replaced
  await publish()
  await until(() => seen.length === 1)
  const again = t.rejects(locks.request(name, { steal: true }, () => new Promise(() => {})), { name: 'AbortError' })
  await connected(0)
  await publish()
  await again
  await until(() => seen.length === 2)
  t.same(seen, [1, 2])
  t.equal(client.state.name, 'open')
})

t.test('a page that is frozen stops to read, and continues', async t => {
  const { connect, publish, connected, document } = await start(t)
  const { seen, isOpen } = connect()
  await isOpen()
  await publish()
  await until(() => seen.length === 1)
  document.dispatchEvent(new Event('freeze'))
  await connected(0)
  await publish()
  document.dispatchEvent(new Event('resume'))
  await until(() => seen.length === 2)
  t.same(seen, [1, 2])
})

t.test('what a tab that has crashed had subscribed to is given back', async t => {
  const { connect, holds, locks, name } = await start(t)
  const { isOpen } = connect(['a'])
  await isOpen()
  let crash!: () => void
  const life = locks.request(`${name} other`, {}, () => new Promise(resolve => { crash = resolve }))
  const channel = new BroadcastChannel(name)
  t.teardown(() => channel.close())
  const heard: Message[] = []
  channel.onmessage = ({ data }: any) => { heard.push(data) }
  channel.postMessage({ type: 'join', tab: 'other', cursor: '', subscriptions: ['b'], fresh: [], isRetry: false } satisfies Message)
  await holds('a', 'b')
  await until(() => heard.some(({ type }) => type === 'joined'))
  crash()
  await life
  await holds('a')
})

t.test('refusals, and an interruption', async t => {
  const { app, connect, connected } = await start(t, { requireAuthentication: true, authHandler: ({ token }) => token })
  const tokens = ['ada', 'ada', 'ada']
  const asked: number[] = []
  const clients = tokens.map((_, i) => connect(['news'], {
    headers: () => {
      asked.push(i)
      return { authorization: `Bearer ${tokens[i]}` }
    }
  }))
  for (const { isOpen } of clients) await isOpen()
  t.equal(new Set(asked).size, 1, 'only the tab that reads is asked')
  app.sse.connections().next().value!.close('max-age')
  await connected(0)
  for (const { client } of clients) await until(() => client.state.name === 'waiting')
  clients[0]!.client.reconnect()
  for (const { isOpen } of clients) await isOpen()
  await connected(1)
  await app.sse.disconnectUser('ada', 'kicked')
  for (const { client } of clients) {
    await until(() => client.state.name === 'closed')
    t.same(client.state, { name: 'closed', reason: 'kicked' })
  }

  const signedOut = connect(['news'], { headers: () => null })
  await until(() => signedOut.client.state.name === 'closed')
  t.match(signedOut.client.state, { reason: 'no-credentials' })
  const withoutTicket = connect(['news'], { ticket: () => null })
  await until(() => withoutTicket.client.state.name === 'closed')
  t.match(withoutTicket.client.state, { reason: 'no-credentials' })
  const wrong = connect(['news'], { ticket: () => 'x' })
  await until(() => wrong.client.state.name === 'closed')
  t.match(wrong.client.state, { reason: 'refused', status: 401 })
})

t.test('wrong options, and a process without tabs', async t => {
  t.throws(() => shareTabs('/sse', {} as ShareTabsOptions), { code: 'SSE_ERR_CLIENT_OPTION', message: /user must be/ })
  t.throws(() => shareTabs('http://localhost', { user: 'ada', header: {} } as object as ShareTabsOptions), { code: 'SSE_ERR_CLIENT_OPTION' })
  const { app, url } = await serve(t)
  const clients = [1, 2].map(() => shareTabs(`${url}/sse?user=ada`, { user: 'ada' }))
  t.teardown(() => { for (const client of clients) client.close() })
  await until(() => app.sse.connectionCount === 2)
})

t.test('cursors', async t => {
  for (const [a, b, expected] of [
    ['e.5', 'e.5', true], ['e.5', 'e.4', true], ['e.4', 'e.5', false], ['e.10', 'e.z', true], ['e.5', 'f.4', false], ['', '', true], ['e.5', '', false], ['x!', 'x!', true],
    ['e.5', 'e.3~3~5~5', true], ['e.3~3~5~5', 'e.4', false], ['e.3~3~5~5', 'e.3', true], ['e.4~4~4~4', 'e.4', true], ['e.5!0', 'e.4', true], ['e.5', 'e.5!0', true]
  ] as const) t.equal(covers(a, b), expected, `${a} covers ${b}`)
})

t.test('a tab that is ahead: what it has is not repeated, in whatever order', async t => {
  const recent = new Recent()
  const wanted = (cursor: string) => new Reading(new URL('http://localhost/sse?subscription=a'), cursor, recent)
  const block = (id: string, n: number) => ({ id, text: `id: ${id}\nevent: n\ndata: ${n}\n\n` })
  const numbersOf = async (reading: Reading) => {
    const response = await reading.response
    const { value } = await response!.body!.getReader().read()
    return Array.from(new TextDecoder().decode(value).matchAll(/^data: (.*)$/gm), ([, n]) => Number(n))
  }
  const before = wanted('e.1')
  before.open({ previous: 'e.1', entries: [], next: 0 })
  before.push([block('e.2', 2), block('e.3', 3), block('e.4', 4)])
  t.same(await numbersOf(before), [2, 3, 4])
  t.equal(before.cursor, 'e.4')

  const reading = wanted('e.4')
  reading.open({ previous: 'e.1', entries: [], next: 0 })
  // 3 and 6 are urgent: a replay sends them first.
  reading.push([block('e.1~1~3~3', 3), block('e.1~1~6~6', 6), block('e.2~2~6~6', 2), block('e.4~4~6~6', 4), block('e.6', 5), { id: null, text: 'data: 0\n\n' }, block('e.7', 7)])
  t.same(await numbersOf(reading), [6, 5, 0, 7])
  t.equal(reading.cursor, 'e.7')
})

t.test('the relay keeps a part of the stream', async t => {
  const relay = new Relay()
  const bytes = (text: string) => new TextEncoder().encode(text)
  relay.start('')
  t.equal(relay.after('e.1', false), null)
  relay.push(bytes(': stream keep-alive=1000\n\nid: e.1\n\ndata: eph'))
  relay.push(bytes('emeral\n\nid: e.2\ndata: 2\n\nevent: sse:gap\ndata: {}\n\n'))
  t.match(relay.after('e.1', false), { previous: 'e.1', from: 3, next: 6, entries: [{ id: 'e.2' }, { text: /sse:gap/ }] })
  t.equal(relay.after('e.1', false)!.entries.length, 2, 'events without an id are not repeated')
  t.equal(relay.after('f.1', false), null)
  for (let i = 3; i < 1_200; i++) relay.push(bytes(`id: e.${i.toString(36)}\ndata: ${i}\n\n`))
  t.equal(relay.after('e.2', false), null, 'at most a thousand blocks')
  t.ok(relay.after(`e.${(1_100).toString(36)}`, false))
  relay.push(bytes(`id: e.zz\ndata: ${'x'.repeat(600_000)}\n\n`))
  t.equal(relay.after(`e.${(1_100).toString(36)}`, false), null, 'at most 512 KB')
})
