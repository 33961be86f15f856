import { setTimeout as sleep } from 'node:timers/promises'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { EventPriority, type SSEOptions } from '../../lib/index.js'
import { shareTabs, type ShareTabsOptions } from '../../lib/client/tabs.js'
import type { SentMessage } from '../../lib/client/tabs/messages.js'
import { serve } from '../helpers/app.js'
import { Network } from '../helpers/network.js'
import { browse } from '../helpers/tab-page.js'
import { until } from '../helpers/wait.js'

// What goes wrong in one tab, or between it and the server, does not stop the others.

async function start (t: Test, options: SSEOptions = {}) {
  const answers: { code: number, body: object, headers: Record<string, string> }[] = []
  let requests = 0
  const { app } = await serve(t, { path: '/own', clientSubscriptions: true, authorizeSubscription: () => true, ...options }, {}, app => {
    app.addHook('onRequest', async (request, reply) => {
      requests++
      const [answer] = answers
      if (answer !== undefined) await reply.code(answer.code).headers(answer.headers).send(answer.body)
    })
  })
  const network = await Network.start(t, (app.server.address() as AddressInfo).port)
  const url = `${network.url}/own?user=ada`
  const openPage = browse(t)
  let published = 0
  return {
    app,
    network,
    openPage,
    answers,
    name: `fastify-sse-manager tabs 1 ${JSON.stringify(['ada', url])}`,
    requests: () => requests,
    async publish (topic = 'news', priority: EventPriority = EventPriority.NORMAL) {
      await app.sse.broadcastEvent({ event: 'n', data: ++published, priority }, { subscriptionIds: [topic] })
      return published
    },
    connect (subscriptions: readonly string[] = ['news'], options: Partial<ShareTabsOptions> = {}) {
      const page = openPage()
      const client = page.run(() => shareTabs(url, { user: 'ada', subscriptions, fetch: page.fetch, ...options }))
      t.teardown(() => page.run(() => client.close()))
      const seen: number[] = []
      const states: string[] = []
      client.on('n', n => { seen.push(n) })
      client.onState(({ name }) => { states.push(name) })
      return {
        page,
        client,
        seen,
        states,
        is: (name: string) => until(() => client.state.name === name, undefined, `the client is ${name}`),
        receives: (n: number) => until(() => seen.at(-1) === n, undefined, `the client receives ${n}`)
      }
    }
  }
}

t.test('no tab waits for the back-off of another one when its user wants it to connect', async t => {
  // Longer than any deadline of this test.
  const { network, connect } = await start(t, { retryMs: 300_000 })
  const [first, second] = [connect(), connect()]
  const tabs = [first, second]
  const goDown = async () => {
    for (const { is } of tabs) await is('open')
    network.down()
    for (const { is } of tabs) await is('waiting')
    network.up()
  }
  await goDown()
  const third = connect()
  tabs.push(third)
  for (const { is } of tabs) await is('open')
  for (const { page, client } of tabs) {
    await goDown()
    page.run(() => client.reconnect())
    for (const { is } of tabs) await is('open')
    await goDown()
    page.run(() => page.show('hidden'))
    page.run(() => page.show('visible'))
    for (const { is } of tabs) await is('open')
  }
})

t.test('the back-off of other tabs sends no requests', async t => {
  const { app, answers, connect, requests } = await start(t, { retryMs: 100 })
  const [first, ...others] = [connect(), connect(), connect()]
  for (const { is } of [first!, ...others]) await is('open')
  answers.push({ code: 502, body: {}, headers: {} })
  app.sse.connections().next().value!.close('max-age')
  const attempts = ({ states }: typeof others[0]) => states.filter(name => name === 'connecting').length
  for (const tab of others) await until(() => attempts(tab) > 2, undefined, 'attempts of another tab')
  t.equal(requests(), 1 + attempts(first!))
  answers.pop()
  for (const { is } of others) await is('open')
})

t.test('all tabs show the same refusal, and none asks earlier when it is shown', async t => {
  const { app, answers, connect, requests } = await start(t, { retryMs: 100 })
  const tabs = [connect(), connect()]
  for (const { is } of tabs) await is('open')
  answers.push({ code: 503, body: { code: 'BUSY' }, headers: { 'retry-after': '3600' } })
  app.sse.connections().next().value!.close('max-age')
  for (const { page, client } of tabs) {
    await until(() => client.state.name === 'waiting' && client.state.reason === 'refused')
    t.match(client.state, { status: 503, code: 'BUSY' })
    const before = client.state
    t.ok('retryInMs' in before && before.retryInMs! >= 3_600_000)
    page.run(() => page.show('hidden'))
    page.run(() => page.show('visible'))
    t.equal(client.state, before)
  }
  t.equal(requests(), 2)
})

t.test('tabs whose cursors are of different logs, or of different replays, do not take turns', async t => {
  const { app, publish, connect, requests } = await start(t, { keepAliveIntervalMs: 100 })
  const [epoch] = app.sse.position()!.split('.')
  await publish()
  await publish()
  await publish('news', EventPriority.HIGH)
  /** A network on which the body of a response follows later. */
  const slow: typeof fetch = async (input, init) => {
    const { body, status, headers } = await fetch(input, init)
    let isFirst = true
    return new Response(body!.pipeThrough(new TransformStream({
      async transform (part, controller) {
        if (isFirst) await sleep(20)
        isFirst = false
        controller.enqueue(part)
      }
    })), { status, headers })
  }
  // The first has received the urgent event before those that had to wait.
  const tabs = [`${epoch}.3~1~3~3`, `${epoch}.2`, 'lost.1', 'other.9'].map(lastEventId => connect(['news'], { lastEventId, fetch: slow }))
  for (const { is } of tabs) await is('open')
  const receive = async () => {
    const last = await publish()
    for (const { receives } of tabs) await receives(last)
  }
  await receive()
  t.ok(tabs[0]!.seen.includes(2) && tabs[1]!.seen.includes(3), 'what they had not received')
  const before = requests()
  t.ok(before < 12, `${before} requests`)
  await receive()
  t.equal(requests(), before)
  t.equal(app.sse.connectionCount, 1)
})

t.test('a tab whose cursor is of another log does not wait for an event', async t => {
  // Longer than any deadline of this test.
  const { publish, connect } = await start(t, { keepAliveIntervalMs: 300_000 })
  const first = connect()
  await first.is('open')
  const other = connect(['news'], { lastEventId: 'lost.1' })
  const gaps: string[] = []
  other.client.onGap(({ reason }) => { gaps.push(reason) })
  for (const { is } of [first, other]) await is('open')
  t.same(gaps, ['epoch'])
  const last = await publish()
  for (const { receives } of [first, other]) await receives(last)
})

t.test('a tab whose subscriptions are refused is closed, and no other one', async t => {
  let isRevoked = false
  const { app, publish, connect } = await start(t, { retryMs: 100, authorizeSubscription: ({ subscriptionId }) => subscriptionId !== 'forbidden' && !(isRevoked && subscriptionId === 'revoked') })
  const tabs = [connect(['a']), connect(['b'])]
  for (const { is } of tabs) await is('open')
  const added = connect(['b', 'forbidden'])
  await added.is('closed')
  t.match(added.client.state, { reason: 'refused', status: 403, code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' })
  const revoked = connect(['revoked'])
  await revoked.is('open')
  isRevoked = true
  app.sse.connections().next().value!.close('max-age')
  await revoked.is('closed')
  t.match(revoked.client.state, { reason: 'refused', status: 403 })
  for (const { is } of tabs) await is('open')
  const a = await publish('a')
  await tabs[0]!.receives(a)
  const b = await publish('b')
  await tabs[1]!.receives(b)
  added.page.run(() => added.client.setSubscriptions(['c']))
  await added.is('open')
})

t.test('a tab that comes back does not wait for one that hangs', async t => {
  const { publish, connect } = await start(t)
  const reader = connect()
  await reader.is('open')
  const other = connect(['news'], { pauseWhenHidden: true })
  await other.is('open')
  reader.page.hang()
  other.page.run(() => other.page.show('hidden'))
  other.page.run(() => other.page.show('visible'))
  await other.is('open')
  const last = await publish()
  await other.receives(last)
  reader.page.resume()
  await reader.receives(last)
})

t.test('late messages of a tab that has read before', async t => {
  const { app, openPage, publish, connect, name } = await start(t)
  const tabs = [connect(), connect()]
  for (const { is } of tabs) await is('open')
  const channel = openPage().run(() => new BroadcastChannel(name))
  t.teardown(() => channel.close())
  const say = (message: SentMessage) => channel.postMessage(message)

  say({ type: 'entries', term: 1, from: 0, entries: [{ text: 'event: sse:close\ndata: {"reason":"replaced","reconnect":false}\n\n', id: null }] })
  const first = await publish()
  for (const { receives } of tabs) await receives(first)
  t.same(tabs.map(({ client }) => client.state.name), ['open', 'open'], 'its end does not end the stream of its successor')

  for (const { page } of tabs) page.run(() => page.show('hidden'))
  say({ type: 'lead', term: Date.now() + 60_000, tabs: [] })
  await until(() => app.sse.connectionCount === 0, undefined, 'the tab that reads has followed')
  const second = await publish()
  for (const { seen, receives } of tabs) {
    await receives(second)
    t.same(seen, [first, second])
  }
})
