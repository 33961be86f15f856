import t from 'tap'
import { webLocks } from '../../lib/client/tabs/browser.js'
import { covers, earlier, isEmpty, isIncomplete } from '../../lib/client/tabs/cursors.js'
import { lifeOf, Membership } from '../../lib/client/tabs/membership.js'
import { Roster } from '../../lib/client/tabs/roster.js'
import { LeaderLock } from '../../lib/client/tabs/leader-lock.js'
import { setGlobals } from '../helpers/globals.js'
import { turns, until } from '../helpers/wait.js'
import { WebLocks } from '../helpers/web-locks.js'

// What a tab has in common with others: locks, a channel, a list of tabs, and cursors. At the end no lock is held or waited for.

const settled = async (): Promise<void> => await turns(3)

function start (locks: WebLocks) {
  const held: boolean[] = []
  return { held, lock: new LeaderLock(locks, 'lock', isHeld => { held.push(isHeld) }) }
}

t.test('the lock passes from tab to tab', async t => {
  const locks = new WebLocks()
  const [first, second] = [start(locks), start(locks)]
  first.lock.wait()
  second.lock.wait()
  await settled()
  t.same([first.held, second.held, first.lock.isHeld, second.lock.isHeld], [[true], [], true, false])
  first.lock.leave()
  t.equal(first.lock.isHeld, false)
  await settled()
  t.same([first.held, second.held, locks.count('lock')], [[true], [true], 1])
  first.lock.wait()
  second.lock.leave()
  await settled()
  t.same([first.held, locks.count('lock')], [[true, true], 1])
  first.lock.leave()
  await settled()
  t.equal(locks.count('lock'), 0)
})

t.test('a tab that has left does not wait, and takes no lock', async t => {
  const locks = new WebLocks()
  const [first, second] = [start(locks), start(locks)]
  first.lock.wait()
  first.lock.leave()
  await settled()
  t.same([first.held, first.lock.isHeld, locks.count('lock')], [[], false, 0], 'it had left when it was given the lock')
  first.lock.wait()
  second.lock.wait()
  await settled()
  second.lock.leave()
  await settled()
  t.equal(locks.count('lock'), 1)
  second.lock.steal()
  await settled()
  t.same([first.held, second.held, locks.count('lock')], [[true], [], 1])
})

t.test('a lock that is stolen comes back', async t => {
  const locks = new WebLocks()
  const [first, second] = [start(locks), start(locks)]
  first.lock.wait()
  second.lock.wait()
  await settled()
  second.lock.steal()
  await settled()
  t.same([first.held, second.held, first.lock.isHeld, locks.count('lock')], [[true, false], [true], false, 2])
  second.lock.steal()
  await settled()
  t.same([second.held, locks.count('lock')], [[true, true], 2], 'a tab that holds it is told so again')
  second.lock.leave()
  await settled()
  t.same([first.held, first.lock.isHeld, locks.count('lock')], [[true, false, true], true, 1])
  first.lock.leave()
  await settled()
  t.equal(locks.count('lock'), 0)
})

/** A tab of the group, and what has happened to it. */
function join (locks: WebLocks) {
  const calls: unknown[] = []
  const membership = new Membership(locks, 'group', { receive: message => { calls.push(message) }, lead: () => { calls.push('lead') }, follow: () => { calls.push('follow') } })
  return { membership, calls }
}

t.test('a membership: from the first lock to the last', async t => {
  const document = new EventTarget()
  setGlobals(t, { document })
  const say = async (type: string) => {
    document.dispatchEvent(new Event(type))
    await settled()
  }
  const locks = new WebLocks()
  const { membership, calls } = join(locks)
  const life = lifeOf('group', membership.tab)
  t.equal(await membership.isSeen, true)
  await settled()
  t.same([calls, locks.count('group'), locks.count(life)], [['lead'], 1, 1])
  await say('freeze')
  t.same([calls, locks.count('group'), locks.count(life)], [['lead', 'follow'], 0, 1], 'a frozen page does not read, and exists')
  await say('resume')
  t.same([calls, locks.count('group')], [['lead', 'follow', 'lead'], 1])

  const other = join(locks)
  t.not(other.membership.tab, membership.tab)
  await other.membership.isSeen
  const ping = { type: 'ping', term: 1 } as const
  other.membership.post(ping)
  await until(() => calls.length === 4)
  t.same(calls[3], ping)
  t.same(other.calls, [], 'a tab does not hear itself')

  membership.leave()
  await settled()
  t.same([locks.count(life), locks.count('group'), other.calls], [0, 1, ['lead']])
  for (const type of ['freeze', 'resume']) await say(type)
  t.equal(locks.count('group'), 1, 'a tab that has left does not come back')
  t.equal(calls.length, 4)
  other.membership.leave()
  await settled()
  t.equal(locks.count('group'), 0)
})

t.test('a page that may not use locks is not seen', async t => {
  const { membership } = join({ request: async () => { throw new DOMException('Access denied', 'SecurityError') } } as unknown as WebLocks)
  t.equal(await membership.isSeen, false)
  membership.leave()
})

t.test('a page that can share: locks, a channel and an address', async t => {
  const locks = {}
  const page = { navigator: { locks }, location: { href: 'http://localhost/' }, BroadcastChannel }
  for (const [name, given, expected] of [['all', {}, locks], ['no locks', { navigator: {} }, null], ['no navigator', { navigator: undefined }, null], ['no channel', { BroadcastChannel: undefined }, null], ['no address', { location: undefined }, null]] as const) {
    await t.test(name, async t => {
      setGlobals(t, { ...page, ...given })
      t.equal(webLocks(), expected)
    })
  }
})

t.test('the list of tabs', async t => {
  const locks = new WebLocks()
  const roster = new Roster(locks, 'group')
  roster.set('one', ['a', 'b'])
  roster.set('two', ['b', 'c'])
  t.same([...roster.union].sort(), ['a', 'b', 'c'])
  roster.set('one', ['d'])
  t.same(roster.tabs, [['one', ['d']], ['two', ['b', 'c']]])
  t.same([roster.has('one'), roster.delete('one'), roster.has('one'), roster.delete('one')], [true, true, false, false])
  roster.tabs = [['three', []]]
  t.same(roster.tabs, [['three', []]])

  const ended: string[] = []
  const lives: (() => void)[] = []
  const life = lifeOf('group', 'one')
  const live = (): void => { locks.request(life, {}, () => new Promise<void>(resolve => { lives.push(resolve) })) }
  const watch = (): void => roster.watch('one', () => { ended.push('one') })
  live()
  watch()
  watch()
  await settled()
  t.equal(locks.count(life), 2, 'one request waits for the end of a tab')
  roster.unwatch()
  t.equal(locks.count(life), 1)
  watch()
  t.equal(locks.count(life), 2, 'it can be watched again')
  lives[0]!()
  await settled()
  t.same([ended, locks.count(life)], [['one'], 0])
  roster.delete('one')
  live()
  watch()
  t.equal(locks.count(life), 2, 'also after its end')
  roster.unwatch()
})

t.test('cursors', async t => {
  for (const [cursor, empty, incomplete] of [['', true, true], ['!0', true, true], ['!', false, false], ['e.1', false, false], ['e.1!0', false, true], ['e.1~2!x', false, true], ['e.1!', false, false], ['!0x', false, false]] as const) {
    t.same([isEmpty(cursor), isIncomplete(cursor)], [empty, incomplete], cursor)
  }
  // Which covers the other, and the newest that both cover.
  for (const [a, b, ab, ba, both] of [
    ['e.5', 'e.5', true, true, 'e.5'], ['e.5', 'e.4', true, false, 'e.4'], ['e.z', 'e.10', false, true, 'e.z'], ['e.5!0', 'e.5', true, true, 'e.5'], ['e.6!0', 'e.5!1', true, false, 'e.5'], ['e.5!0', 'e.5!0', true, true, 'e.5!0'],
    ['e.1~2', 'e.2~1', false, false, 'e.1~1'], ['e.3~3~5~5', 'e.4', false, false, 'e.3~3~4~4'], ['e.4', 'e.3~3~5~5', false, false, 'e.3~3~4~4'], ['e.5', 'e.3~3~5~5', true, false, 'e.3~3~5~5'], ['e.2', 'e.3~3~5~5', false, true, 'e.2~2~2~2'],
    ['e.5', 'f.5', false, false, null], ['e.5', '', false, false, null], ['', '', true, true, ''], ['x', 'x', true, true, 'x'], ['x', 'y', false, false, null], ['a-b_1.5', 'a-b_1.4', true, false, 'a-b_1.4'], ['e.5!00', 'e.5', false, false, null], ['r:1.5', 'r:1.4', false, false, null]
  ] as const) t.same([covers(a, b), covers(b, a), earlier(a, b), earlier(b, a)], [ab, ba, both, both], `${a} and ${b}`)
})
