import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import type { Entry } from '../../lib/log/redis/entry.js'
import type { LogState, Progress } from '../../lib/log/redis/store.js'
import { ago, connection, entry, NONE, place, reading } from '../helpers/log-reader.js'
import { fakeTimers } from '../helpers/timers.js'

t.test('entries of both streams are delivered in log order, whatever the pages of a reply, and each hole is told with what is lost', async t => {
  const kind = fc.record({ ephemeral: fc.boolean(), command: fc.boolean(), gone: fc.oneof({ weight: 5, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.boolean() }), foreign: fc.oneof({ weight: 9, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.boolean() }) })
  let torn = 0
  await t.resolves(fc.assert(fc.asyncProperty(fc.array(kind, { minLength: 1, maxLength: 40, size: 'max' }), fc.infiniteStream(fc.record({ count: fc.integer({ min: 1, max: 6 }), one: fc.constantFrom('logged', 'ephemeral', 'both') })), async (kinds, shapes) => {
    const logged: Entry[] = []
    const ephemeral: Entry[] = []
    const expected: unknown[] = []
    let [seq, ephemerals, newest, newestTime] = [0, 0, 0, 0]
    let read = NONE
    let hole: { from: number, lost: boolean } | null = null
    for (const { ephemeral: isEphemeral, command, gone, foreign } of kinds) {
      if (isEphemeral) {
        ephemeral.push(entry(++ephemerals, seq, { ephemeral: true, foreign }))
        // In front of it all that was logged before; a hole is found by the next logged entry.
        if (!foreign) expected.push(`ephemeral ${ephemerals}`)
        continue
      }
      const made = entry(++seq, ephemerals, { event: command ? 'sse:node' : 'e', foreign, command: newest, commandTime: newestTime, time: ago(-seq) })
      if (!gone) logged.push(made)
      if (gone) {
        hole ??= { from: seq, lost: false }
        hole.lost ||= command
      } else if (foreign) {
        expected.push(['moved', 1, seq, 'trimmed', false])
        hole = null
      } else {
        if (hole !== null) expected.push(['moved', 1, seq - 1, 'trimmed', newest < hole.from])
        hole = null
        expected.push(String(seq))
        const last = command ? { command: seq, commandTime: made.time } : { command: newest, commandTime: newestTime }
        if (last.command > read.command) read = last
      }
      if (command) [newest, newestTime] = [seq, made.time]
    }
    const { reader, store, told } = reading()
    const shape = shapes[Symbol.iterator]()
    let done = () => {}
    const end = new Promise<void>(resolve => { done = resolve })
    store.place = place({})
    store.follow = async (_connection, position, _known, _portion, blockMs) => {
      const { count, one } = shape.next().value!
      const rest = { logged: logged.filter(({ number }) => number > position.seq), ephemeral: ephemeral.filter(({ number }) => number > position.ephemerals) }
      if (rest.logged.length === 0 && rest.ephemeral.length === 0) {
        done()
        return await new Promise(() => {})
      }
      const stretch = (entries: Entry[]) => ({ entries: entries.slice(0, count), cut: entries.length >= count })
      const news = { logged: stretch(rest.logged), ephemeral: stretch(rest.ephemeral), suspect: false }
      if (blockMs > 0 && one !== 'both' && rest.logged.length > 0 && rest.ephemeral.length > 0) {
        torn++
        news[one === 'logged' ? 'ephemeral' : 'logged'] = { entries: [], cut: false }
      }
      return news
    }
    reader.serve(connection, () => {}).catch(() => {})
    await end
    const [first, ...rest] = told() as unknown[]
    assert.deepEqual((first as unknown[]).slice(0, 5), ['moved', 1, 0, null, true])
    const short = rest.map(what => Array.isArray(what) ? what.slice(0, 5) : what)
    const of = (list: unknown[], ephemeral: boolean) => list.filter(what => (typeof what === 'string' && what.startsWith('ephemeral')) === ephemeral)
    assert.deepEqual(of(short, false), of(expected, false))
    // A hole hides what was logged with the same numbers; an entry after it may come first.
    if (kinds.every(({ gone, foreign }) => !gone && !foreign)) assert.deepEqual(short, expected)
    else assert.deepEqual(of(short, true), of(expected, true).filter(what => short.includes(what)), 'in order, and none twice')
    assert.deepEqual(store.progress, { epoch: 1, ...read })
  }), { numRuns: 300 }))
  t.ok(torn > 20, 'also by a Redis that answers with one stream only')
})

t.test('where a reader goes on: at the end of a log that it does not know, at its place, or at the beginning of one that is new', async t => {
  const { store, told, serve, give, reports } = reading()
  const why = 'has a new epoch: of the test'
  await serve({ newest: 7, ephemerals: 3, newestTime: 500, now: 1_000 })
  t.strictSame(told(), [['moved', 1, 7, null, true, why]])
  t.strictSame(store.greets, [{ asked: 0 }])
  t.strictSame(store.follows.at(-1), { epoch: 1, seq: 7, ephemerals: 3, known: { newest: 7, ephemerals: 3 }, blockMs: 2_000 })
  // After silence it asks, and nothing has changed.
  store.place = place({ newest: 7, ephemerals: 3, askedTime: 500, now: 2_000 })
  await give(null)
  t.strictSame(store.greets.at(-1), { asked: 7 })
  await give([entry(8, 3, { time: 600 })], [])
  t.strictSame(told(), ['8'])
  // Redis has another entry with this number, or fewer entries of either kind: it is told to give up the epoch.
  let epoch = 1
  for (const changed of [{ askedTime: 601 }, { newest: 7, askedTime: null }, { ephemerals: 2 }]) {
    const count = store.greets.length
    const position = store.follows.at(-1)!.seq
    const replies = [place({ epoch, newest: position, ephemerals: 3, askedTime: 600, now: 10_000 * epoch, ...changed }), place({ epoch: epoch * 10_000 + 20_000, oldest: 1, newest: 8, ephemerals: 3, newestTime: 600, now: epoch * 10_000 + 20_000 })]
    store.greet = async (_connection, asked) => {
      store.greets.push(asked)
      return replies.shift()!
    }
    await (epoch === 1 ? give([], [], { suspect: true }) : give(null))
    t.strictSame(store.greets.slice(count), [{ asked: position }, { asked: 0, giveUp: epoch }], JSON.stringify(changed))
    epoch = epoch * 10_000 + 20_000
    t.strictSame(told().map(what => (what as unknown[]).slice(0, 4)), [['moved', epoch, 0, 'epoch']], 'a log that began after it had last read is read from its beginning')
    t.match(store.follows.at(-1), { epoch, seq: 0, ephemerals: 0 })
    const entries = Array.from({ length: 8 }, (_, i) => entry(i + 1, 3, { epoch, time: 600 }))
    await give(entries)
    t.match(store.follows.at(-1), { seq: 0, blockMs: 0 }, 'entries of the other stream come before these, so both are read')
    await give(entries)
    t.strictSame(told(), entries.map(({ number }) => String(number)))
  }
  t.ok(reports.every(report => report === null))
})

t.test('a log that began before the last contact with the old one is read from its end', async t => {
  for (const [began, position, contact] of [[999, 9, 'first'], [1_000, 3, 'first'], [3_999, 9, 'silence'], [4_000, 3, 'silence'], [4_999, 9, 'entry'], [5_000, 3, 'entry']] as const) {
    const { store, told, serve, give } = reading()
    await serve({ newest: 1, now: 1_000 })
    store.place = place({ newest: 1, now: 4_000 })
    if (contact !== 'first') await give(null)
    if (contact === 'entry') await give([entry(2, 0, { time: 5_000 })])
    told()
    store.place = place({ epoch: began, oldest: 4, newest: 9, newestTime: 9_000, now: 9_000 })
    await give(null)
    t.match(told(), [['moved', began, position, 'epoch']], `${contact}, ${began}`)
  }
})

t.test('a hole is told by its numbers', async t => {
  const { told, serve, give } = reading()
  await serve()
  told()
  await give([entry(2, 0), entry(5, 0), entry(6, 0, { foreign: true }), entry(9, 0, { foreign: true }), entry(11, 0)])
  const why = (what: string) => `lacks ${what}: deleted, trimmed before this node has read them, or not written by this package`
  const moved = (position: number, what: string) => ['moved', 1, position, 'trimmed', why(what)]
  const expected = [moved(1, 'the event 1'), '2', moved(4, 'the events 3 to 4'), '5', moved(6, 'the event 6'), moved(9, 'the events 7 to 9'), moved(10, 'the event 10'), '11']
  t.strictSame(told().map(what => Array.isArray(what) ? what.toSpliced(4, 1) : what), expected)
})

t.test('an entry is known by its number and its time, if both are known', async t => {
  const { store, told, serve, give } = reading()
  await serve({ newest: 7, newestTime: 500, command: 3, commandTime: 30 })
  await give([entry(8, 0, { foreign: true })])
  store.place = place({ newest: 8, askedTime: 5 })
  await give(null)
  t.strictSame(told().map(what => (what as unknown[]).slice(0, 5)), [['moved', 1, 7, null, false], ['moved', 1, 8, 'trimmed', false]], 'of an entry that is not ours the time is not known')
  await give([entry(9, 0, { command: 0 })])
  await give([entry(10, 0, { command: 3, commandTime: 0 })])
  t.strictSame(store.progress, { epoch: 1, command: 3, commandTime: 30 }, 'an older version does not say which command came before, or when')

  const other = reading()
  await other.serve({ newest: 7, newestTime: 500 })
  other.store.place = place({ newest: 7, askedTime: 501 })
  await other.give(null)
  t.strictSame(other.store.greets.at(-1), { asked: 0, giveUp: 1 }, 'Redis was restored with another one')
})

t.test('a reply with both streams is not asked for twice', async t => {
  const { store, serve, give } = reading()
  await serve({ newest: 1 })
  await give([entry(2, 0)], [entry(1, 2, { ephemeral: true })])
  t.strictSame(store.follows.map(({ blockMs }) => blockMs), [2_000, 2_000])
})

t.test('an entry whose delivery fails is read again', async t => {
  const { store, told, serve, give, failing } = reading()
  await serve({ newest: 1 })
  failing.data = '3'
  await give([entry(2, 0), entry(3, 0), entry(4, 0)])
  t.match(told().slice(1), ['2', '3', { message: 'the delivery fails' }])
  await serve({ newest: 4 })
  t.match(store.follows.at(-1), { seq: 2 })
})

t.test('what is known of commands that were lost', async t => {
  const read = { epoch: 1, command: 5, commandTime: 50 }
  const cases: [name: string, progress: Progress, place: Partial<LogState>, kept: boolean | undefined][] = [
    ['no command is known of the old epoch that this node has not read', read, { previous: read }, undefined],
    ['another has read more', read, { previous: { ...read, command: 6 } }, false],
    ['another has read less', read, { previous: { ...read, command: 4, commandTime: 40 } }, undefined],
    ['the same number at another time is another', read, { previous: { ...read, commandTime: 51 } }, false],
    ['the epoch before is not the one that this node has read', read, { previous: { ...read, epoch: 2 } }, false],
    ['the new log has a command that this node reads', read, { previous: read, oldest: 1, newest: 3, command: 2, commandTime: 20 }, undefined],
    ['the new log has lost its beginning, and a command may be in it', read, { previous: read, oldest: 3, newest: 3, command: 1, commandTime: 10 }, false]
  ]
  for (const [name, progress, changed, kept] of cases) {
    const { store, told, serve, give } = reading()
    await serve({ newest: 5, now: 1_000, command: 5, commandTime: 50 })
    t.strictSame(store.progress, read, 'at the first contact it stands where the log stands')
    t.match(told(), [['moved', 1, 5, null, false]])
    store.progress = progress
    store.place = place({ epoch: 2_000, now: 2_000, ...changed })
    await give(null)
    const [moved] = told() as unknown[][]
    t.equal(moved![4], kept, name)
    const { command = 0, commandTime = 0, oldest = 1 } = changed
    t.strictSame(store.progress, { epoch: 2_000, ...(command >= oldest ? NONE : { command, commandTime }) }, 'a command that it will read does not count as read')
  }
  const { told, serve } = reading()
  await serve({ newest: 5 })
  t.match(told(), [['moved', 1, 5, null, true]], 'a log without commands')
})

t.test('a reader that is late says how far, and when it has caught up', async t => {
  fakeTimers(t)
  const { store, serve, give, reports, told } = reading()
  const lag = (count: number) => `The event log has ${count} events that this node has not read yet: Redis, or the link to it, is slow`
  await serve({ newest: 2, newestTime: ago(0) })
  t.strictSame(reports, [null])
  // Another connection: it is behind from the beginning.
  await serve({ newest: 5 })
  t.strictSame(reports, [null, lag(3)])
  await give([entry(3, 0), entry(4, 0)], [], { logged: true })
  t.strictSame(reports.length, 2)
  await give([entry(5, 0)])
  t.strictSame(reports, [null, lag(3), null])
  const greets = store.greets.length
  // More follow, and these are old: it asks where the log ends.
  store.place = place({ newest: 20 })
  await give([entry(6, 0, { time: ago(4_000) })], [], { logged: true })
  t.equal(store.greets.length, greets, 'not so old')
  await give([entry(7, 0, { time: ago(4_001) })], [])
  t.equal(store.greets.length, greets, 'nothing follows')
  await give([entry(8, 0, { time: ago(4_001) })], [], { logged: true })
  t.equal(store.greets.length, greets + 1)
  t.strictSame(reports.slice(3), [lag(12)])
  await give(Array.from({ length: 12 }, (_, i) => entry(9 + i, 0)))
  t.strictSame((told() as unknown[]).slice(1), Array.from({ length: 18 }, (_, i) => String(i + 3)))
  t.strictSame(reports.slice(4), [null])
  // The last ones that it waits for were deleted.
  await give([entry(21, 0, { time: ago(4_001) })], [], { logged: true })
  store.place = place({ newest: 23 })
  await give([entry(22, 0, { time: ago(4_001) })], [], { logged: true })
  t.strictSame(reports.slice(5), [lag(1)])
  await give(null)
  t.strictSame(reports.slice(6), [null])
  told()
  // What no node may have written is looked into at once.
  const before = store.greets.length
  await give([], [], { suspect: true })
  t.equal(store.greets.length, before + 1)
})
