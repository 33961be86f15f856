import t from 'tap'
import type { ShareTabsOptions } from '../../lib/client/tabs.js'
import { lifeOf } from '../../lib/client/tabs/membership.js'
import type { Entry } from '../../lib/client/tabs/relay.js'
import { until } from '../helpers/wait.js'
import { entry, GROUP, OPEN, start } from './played-group.js'

// One tab, whose group this test plays: how it leaves, takes over, and reads for itself.

t.test('a state of what this tab has added is asked for', async t => {
  const { asked, client, is } = start(t, {}, false)
  const first = await asked(1)
  first.open(OPEN)
  await until(() => client.lastEventId === 'e.1')
  client.setSubscriptions(['a', 'b'])
  const { url } = await asked(2)
  t.equal(url.search, '?subscription=a&subscription=b&fresh=b')
  await is('connecting')
})

t.test('a tab that is to take over does, whether it waits or not', async t => {
  for (const waits of [false, true]) {
    await t.test(waits ? 'it waits' : 'it is connected', async t => {
      const { asked, hears, is, isStolen, lead, say, client } = start(t)
      const tab = await lead(5)
      await is('open')
      if (waits) {
        say({ type: 'ended', term: 5, state: { name: 'waiting', reason: 'end', retryInMs: 1_000 } })
        await is('waiting')
      }
      say({ type: 'take-over', term: 5, to: tab })
      if (waits) {
        t.match(await hears('join', 3), { isRetry: false })
        t.equal(isStolen(), false, 'its attempt is to be answered')
        say({ type: 'take-over', term: 5, to: tab })
      }
      await asked(1)
      await until(isStolen, undefined, 'the lock is stolen')
      client.close()
    })
  }
})

t.test('a tab that takes over twice reads one stream', async t => {
  const { asked, is, lead, requests, say, settled } = start(t)
  const tab = await lead(5)
  await is('open')
  for (let i = 0; i < 2; i++) say({ type: 'take-over', term: 5, to: tab })
  await asked(2)
  await settled()
  t.same(requests.map(({ signal }) => signal.aborted), [true, false])
})

t.test('a tab that leaves has no lock, no timer and no place in the list', async t => {
  const cases: [string, Partial<ShareTabsOptions>, (tab: ReturnType<typeof start>) => void][] = [
    ['closed', {}, ({ client }) => client.close()],
    ['paused', { pauseWhenHidden: true }, ({ document }) => {
      document.visibilityState = 'hidden'
      document.dispatchEvent(new Event('visibilitychange'))
    }]
  ]
  for (const [name, options, leave] of cases) {
    for (const isLed of [true, false]) {
      await t.test(`${name}, as ${isLed ? 'a follower' : 'the tab that reads'}`, async t => {
        const tab = start(t, options, isLed)
        const { asked, client, document, hears, is, lead, locks, of, requests, say, settled, timers } = tab
        if (isLed) await lead(5)
        else (await asked(1)).open(OPEN)
        await is('open')
        if (!isLed) {
          locks.request(lifeOf(GROUP, 'living'), {}, () => new Promise(() => {}))
          say({ type: 'join', term: 0, tab: 'living', cursor: 'e.1', subscriptions: ['b'], fresh: [], isRetry: false })
          ;(await asked(2)).open(OPEN)
          await settled()
        }
        leave(tab)
        const left = await hears('leave', 1)
        await until(() => timers.size === 0, undefined, 'no timer is left')
        t.same([locks.count(GROUP), locks.count(lifeOf(GROUP, left.tab)), requests.every(({ signal }) => signal.aborted)], [isLed ? 1 : 0, 0, true])
        const before = requests.length
        document.visibilityState = 'visible'
        client.reconnect()
        if (isLed) {
          t.not((await hears('join', 3)).tab, left.tab)
          return
        }
        const { url } = await asked(before + 1)
        t.same(url.searchParams.getAll('subscription'), ['a'], 'it knows nothing of the others, until they join')
        await until(() => of('lead').at(-1)!.tabs.length === 1, undefined, 'nor does it name them')
      })
    }
  }
})

t.test('a client that is closed while it joins leaves nothing behind', async t => {
  const { asked, client, hears, is, locks, requests, settled } = start(t, {}, false)
  for (let times = 0; times < 5; times++) {
    for (let i = 0; i < times; i++) await null
    client.close()
    client.reconnect()
  }
  await asked(1)
  await settled()
  t.same([requests.length, locks.count(GROUP)], [1, 1])
  requests[0]!.open(OPEN)
  await is('open')
  client.close()
  await settled()
  t.equal(locks.count(GROUP), 0)
  await hears('join', 0)
})

t.test('a tab that is to read for itself leaves the others', async t => {
  const { asked, client, hears, is, lead, locks, requests, say, settled } = start(t)
  await hears('join', 1)
  say({ type: 'lead', term: 5, tabs: [] })
  const { tab } = await hears('join', 2)
  say({ type: 'alone', term: 5, to: 'another' })
  say({ type: 'alone', term: 5, to: tab })
  t.same(await hears('leave', 1), { type: 'leave', tab, term: 5 })
  const request = await asked(1)
  t.same([locks.count(GROUP), locks.count(lifeOf(GROUP, tab))], [1, 0])
  request.open(OPEN)
  await is('open')
  client.reconnect()
  const next = await hears('join', 3)
  t.not(next.tab, tab, 'its next attempt shares again')
  await lead(9)
  await is('open')
  await settled()
  t.equal(requests.length, 1)
})

t.test('the last message of a tab whose stream the server has closed for good can come late', async t => {
  const { client, hears, is, lead, say, seen, settled } = start(t)
  await lead(5)
  await is('open')
  const final: Entry = { id: null, text: 'event: sse:close\ndata: {"reason":"kicked","reconnect":false}\n\n' }
  const shutdown: Entry = { id: null, text: 'event: sse:close\ndata: {"reason":"shutdown","reconnect":true}\n\n' }
  say({ type: 'entries', term: 4, from: 10, entries: [final] })
  await settled()
  t.equal(client.state.name, 'open', 'while another tab reads, it says nothing about that stream')
  say({ type: 'lead', term: 6, tabs: [] })
  await hears('join', 3)
  say({ type: 'entries', term: 5, from: 10, entries: [entry('e.2', 2), shutdown] })
  await settled()
  t.same([client.state.name, seen], ['open', []])
  say({ type: 'entries', term: 5, from: 12, entries: [entry('e.3', 3), final] })
  await is('closed')
  t.match(client.state, { reason: 'kicked' })
  t.same(seen, [])
})

t.test('that message closes a tab also if its own stream, or that of a third tab, is open already', async t => {
  const final: Entry = { id: null, text: 'event: sse:close\ndata: {"reason":"kicked","reconnect":false}\n\n' }
  for (const reads of [true, false]) {
    await t.test(reads ? 'its own' : 'of a third tab', async t => {
      const { asked, client, hears, is, lead, release, requests, say, settled } = start(t)
      const tab = await lead(5)
      await is('open')
      if (reads) {
        release()
        ;(await asked(1)).open(OPEN)
      } else {
        say({ type: 'lead', term: 6, tabs: [] })
        await hears('join', 3)
        say({ type: 'joined', term: 6, to: tab, slice: { previous: 'e.1', entries: [], from: 0, next: 10 } })
      }
      await settled()
      t.equal(client.state.name, 'open')
      // Of a tab that this one has never followed.
      say({ type: 'entries', term: 4, from: 10, entries: [{ ...final, text: final.text.replace('kicked', 'unknown') }] })
      if (!reads) say({ type: 'lead', term: 7, tabs: [] })
      say({ type: 'entries', term: 5, from: 10, entries: [final] })
      await is('closed')
      t.match(client.state, { reason: 'kicked' }, 'also after two takeovers')
      t.strictSame(requests.map(({ signal }) => signal.aborted), reads ? [true] : [])
    })
  }
})
