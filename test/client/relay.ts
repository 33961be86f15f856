import t, { type Test } from 'tap'
import { Reading, Recent } from '../../lib/client/tabs/reading.js'
import { Relay } from '../../lib/client/tabs/relay.js'
import { serve } from '../helpers/app.js'
import { until } from '../helpers/wait.js'

// What a tab receives that joins late, or is ahead of the tab that reads.

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)
const block = (id: string, data: string): string => `id: ${id}\nevent: n\ndata: ${data}\n\n`

/** The stream of a tab at this cursor, which has joined after this one. */
function join (cursor: string, previous: string, recent = new Recent()) {
  const reading = new Reading(new URL('http://localhost/own'), cursor, recent)
  reading.open({ previous, entries: [], next: 0 })
  let text = ''
  reading.response.then(async response => {
    const decoder = new TextDecoder()
    for await (const part of response!.body!) text += decoder.decode(part, { stream: true })
  }).catch(() => {})
  const relay = new Relay()
  relay.start(previous)
  return {
    reading,
    push (blocks: string) { reading.push(relay.push(bytes(blocks))) },
    /** Waits for an event with this data, and returns the data of all. */
    async data (last: string): Promise<string[]> {
      await until(() => text.includes(`data: ${last}\n`), undefined, `${last} arrives`)
      return Array.from(text.matchAll(/^data: (.*)$/gm), ([, data]) => data!)
    }
  }
}

/** A server whose state has three parts. The returned function reads a stream into a relay, until the state has arrived. */
async function start (t: Test) {
  const { url } = await serve(t, {
    path: '/own',
    clientSubscriptions: true,
    authorizeSubscription: () => true,
    snapshot: { load: () => [1, 2, 3].map(data => ({ event: 'state', data })) }
  })
  return async (cursor: string): Promise<Relay> => {
    const open = new AbortController()
    const response = await fetch(`${url}/own?subscription=a`, { signal: open.signal, headers: { accept: 'text/event-stream', ...(cursor !== '' && { 'last-event-id': cursor }) } })
    const relay = new Relay()
    relay.start(cursor)
    let text = ''
    for await (const part of response.body!) {
      text += new TextDecoder().decode(part)
      relay.push(part)
      if (text.includes('data: 3\n\n')) break
    }
    open.abort()
    return relay
  }
}

const dataOf = (slice: ReturnType<Relay['after']>): string[] => slice!.entries.flatMap(({ text }) => /^data: (.*)$/m.exec(text)?.[1] ?? [])

t.test('a tab that joins later receives all parts of a state', async t => {
  const read = await start(t)
  t.match(dataOf((await read('old.1')).after('old.1', false)), [/"reason":"epoch"/, '1', '2', '3'], 'after a gap')
  t.same(dataOf((await read('')).fromBegin()), ['1', '2', '3'])
})

t.test('a subscription that two tabs add begins with its state in both', t => {
  const relay = new Relay()
  relay.start('a.1')
  relay.push(bytes('id: a.1!0\n\nevent: state\ndata: 1\n\n'))
  for (const cursor of ['a.1', 'a.1!0']) t.same(dataOf(relay.after(cursor, true)), ['1'], cursor)
  t.same(dataOf(relay.after('a.1', false)), [], 'a tab that has the state')
  t.end()
})

t.test('what is not kept any more is not skipped', t => {
  const relay = new Relay()
  relay.start('a.1')
  relay.push(bytes(`event: sse:gap\ndata: {}\n\n${'event: n\ndata: x\n\n'.repeat(1_000)}`))
  t.equal(relay.after('a.1', false), null, 'a gap')
  t.equal(relay.fromBegin(), null, 'the beginning of a state')
  t.equal(relay.after('a.1', true), null)
  t.end()
})

t.test('another event with the same text is not taken for one that was received', async t => {
  const recent = new Recent()
  const tab = join('a.1', 'a.1', recent)
  tab.push(block('a.2', 'same') + block('a.3', 'x') + block('a.4', 'y'))
  await tab.data('y')
  // Another tab reads, at a.2. Its replay begins with a new event of a higher priority.
  const next = join('a.4', 'a.2', recent)
  next.push(block('a.2~2~5~5', 'same') + block('a.3~3~5~5', 'x') + block('a.4~4~5~5', 'y') + block('a.5', 'z'))
  t.same(await next.data('z'), ['same', 'z'])
  t.equal(next.reading.cursor, 'a.5')
})

t.test('a tab that is ahead goes on when the log was lost', async t => {
  const recent = new Recent()
  const tab = join('a.1', 'a.1', recent)
  tab.push(block('a.2', 'same') + block('a.3', 'same'))
  await tab.data('same')
  const next = join('a.3', 'a.2', recent)
  next.push(`event: sse:gap\ndata: {"reason":"epoch"}\n\n${block('b.1', 'same')}${block('b.2', 'last')}`)
  t.same(await next.data('last'), ['{"reason":"epoch"}', 'same', 'last'])
  t.equal(next.reading.cursor, 'b.2', 'the cursor is that of the new log')
})

t.test('a tab that is ahead has the state that replaces what it has received', async t => {
  for (const [cursor, gap] of [['a.3', 'event: sse:gap\ndata: {"reason":"trimmed","snapshot":true}\n\n'], ['a.3!0', 'id: a.2!0\n\n']] as const) {
    const next = join(cursor, 'a.2')
    next.push(`${gap}event: state\ndata: 1\n\n${block('a.3', '2')}${block('a.4', 'last')}`)
    t.same((await next.data('last')).slice(-3), ['1', '2', 'last'])
    t.equal(next.reading.cursor, 'a.4')
  }
})

t.test('an event is not repeated, however often the stream begins again', async t => {
  const recent = new Recent()
  const tab = join('a.5', 'a.5', recent)
  tab.push(block('a.6', '6') + block('a.7', '7') + block('a.8', '8'))
  await tab.data('8')
  const next = join('a.8', 'a.5', recent)
  // A new event of a higher priority is first, then what the tab has received.
  const repeated = block('a.9~5~9~9', '9') + block('a.9~6~9~9', '6') + block('a.9~7~9~9', '7')
  for (let i = 0; i < 3; i++) {
    next.push(repeated)
    next.reading.open({ previous: 'a.5', entries: [], next: 0 })
  }
  next.push(repeated + block('a.9', '8') + block('a.a', 'last'))
  t.same(await next.data('last'), ['9', 'last'])
})

t.test('what a tab remembers of its events is bounded, in number and in size', t => {
  for (const [count, size, kept] of [[1_000, 10, 200], [20, 100_000, 5]] as const) {
    const recent = new Recent()
    const text = (i: number) => String(i).padEnd(size, 'x')
    for (let i = 1; i <= count; i++) recent.add(text(i), `a.${i.toString(36)}`)
    recent.begin('a.0')
    t.equal(Array.from({ length: count }, (_, i) => recent.take(text(i + 1))).filter(Boolean).length, kept)
  }
  t.end()
})

t.test('a stream that begins again forgets what the last one has left unfinished', t => {
  const relay = new Relay()
  relay.start('a.1')
  const half = bytes('data: é\n\n')
  t.same(relay.push(bytes('id: a.2\ndata: lost')), [])
  relay.push(half.subarray(0, 7))
  relay.start('a.1')
  t.same(relay.push(half), [{ id: null, text: 'data: é\n\n' }])
  t.same(relay.push(bytes('id: a.2\n\nid:a.3\ndata: x\n\ndata: y')), [{ id: 'a.2', text: 'id: a.2\n\n' }, { id: 'a.3', text: 'id:a.3\ndata: x\n\n' }])
  t.same([relay.begin, relay.next, relay.cursor], [1, 5, 'a.3'])
  t.end()
})

t.test('where the kept part of several streams begins, and when it is bounded', t => {
  const relay = new Relay()
  relay.start('a.5')
  relay.push(bytes(block('a.6', '6')))
  relay.start('a.1')
  t.equal(relay.after('a.4', false)!.from, 3, 'the second stream')
  t.equal(relay.after('a.0', false), null)
  for (let i = 0; i < 5; i++) {
    relay.push(bytes(`: ${'x'.repeat(400_000)}\n\n`))
    t.equal(relay.after('a.6', false)!.next, 4 + i)
  }
  t.equal(relay.after('a.1', false)!.entries.length, 0, 'comments are not repeated')
  relay.push(bytes(block('a.7', '7')))
  t.same(dataOf(relay.after('a.1', false)), ['7'])
  t.equal(relay.fromBegin(), null)

  const first = new Relay()
  first.start('a.5')
  first.start('a.1')
  first.push(bytes('data: x\n\n'.repeat(999)))
  t.same([first.fromBegin()?.from, first.after('a.1', true)?.from], [1, 2], 'a thousand are kept')
  first.push(bytes('data: x\n\n'))
  t.same([first.fromBegin(), first.after('a.1', true), first.after('a.1', false)?.entries.length], [null, null, 0])
  t.end()
})

t.test('whether a stream goes on in its log', t => {
  const gap = 'event: sse:gap\ndata: {}\n\n'
  for (const [text, isLive] of [
    ['', false], [': stream\n\n', false], ['data: 1\n\n', false], ['id: a.5\n\n', false], ['id: a.4\n\n', false], [block('a.6', '6'), true], ['id: a.5\n\ndata: 1\n\n', true], ['id: a.5\n\nid: a.6\n\n', true],
    [`id: a.5\n\n${gap}`, false], [`${block('a.6', '6')}${gap}`, false], [`${gap}id: a.5\n\n`, false], [`${gap}${block('b.1', '1')}`, true], [`${block('a.6', '6')}${gap}${block('b.1', '1')}`, true]
  ] as const) {
    const relay = new Relay()
    relay.start('a.1')
    relay.push(bytes(block('a.2', '2')))
    relay.start('a.5')
    relay.push(bytes(text))
    t.equal(relay.isLive, isLive, JSON.stringify(text))
  }
  t.end()
})

t.test('which events without an id are repeated', t => {
  const relay = new Relay()
  relay.start('a.1')
  relay.push(bytes('data: before\n\n'))
  relay.start('a.1')
  relay.push(bytes('data: 1\n\nid: a.1!0\ndata: 2\n\ndata: 3\n\nid: a.2\ndata: 4\n\ndata: 5\n\nevent: sse:gap\ndata: gap\n\nid: a.2!0\ndata: 6\n\ndata: 7\n\nid: a.3\ndata: 8\n\ndata: 9\n\n'))
  t.same(dataOf(relay.after('a.1', false)), ['4', 'gap', '6', '7', '8'], 'the parts of a state')
  t.same(dataOf(relay.after('a.1', true)), ['3', '4', '5', 'gap', '6', '7', '8', '9'])
  t.same(dataOf(relay.after('a.3', false)), [])
  t.same(dataOf(relay.fromBegin()), ['1', '2', '3', '4', '5', 'gap', '6', '7', '8', '9'])
  t.end()
})
