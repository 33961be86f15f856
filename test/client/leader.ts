import t from 'tap'
import type { SSEClient } from '../../lib/client/client.js'
import { Leader, type LeaderContext } from '../../lib/client/tabs/leader.js'
import type { Join, Report } from '../../lib/client/tabs/messages.js'
import { Reading, Recent } from '../../lib/client/tabs/reading.js'
import { Roster } from '../../lib/client/tabs/roster.js'
import { turns } from '../helpers/wait.js'
import { WebLocks } from '../helpers/web-locks.js'

// The tab that reads for all: what it asks the server for, when it asks again, and what it answers the others.

const settled = async (): Promise<void> => await turns(4)
const block = (id: string, data = id): string => `id: ${id}\ndata: ${data}\n\n`
const blocks = (from: number, to: number): string => Array.from({ length: to - from + 1 }, (_, i) => block(`e.${from + i}`)).join('')

/** A request to the server, and its answer. */
class Asked {
  readonly url: URL
  readonly cursor: string
  readonly signal: AbortSignal
  readonly response: Promise<Response | null>
  #settle!: (response: Response | null) => void
  #fail!: (error: Error) => void
  #body!: ReadableStreamDefaultController<Uint8Array>

  constructor (url: URL, cursor: string, signal: AbortSignal) {
    this.url = url
    this.cursor = cursor
    this.signal = signal
    this.response = new Promise((resolve, reject) => {
      this.#settle = resolve
      this.#fail = reject
    })
  }

  get names (): string[] {
    return this.url.searchParams.getAll('subscription').sort()
  }

  get fresh (): string[] {
    return this.url.searchParams.getAll('fresh').sort()
  }

  async answer (response: Response | null): Promise<void> {
    this.#settle(response)
    await settled()
  }

  async refuse (status: number): Promise<void> {
    await this.answer(new Response('', { status }))
  }

  async fail (): Promise<void> {
    this.#fail(new Error('No network'))
    await settled()
  }

  /** Answers with a stream that begins with this text. */
  async open (text = ''): Promise<void> {
    await this.answer(new Response(new ReadableStream({ start: controller => { this.#body = controller } }), { headers: { 'content-type': 'text/event-stream; charset=utf-8' } }))
    await this.write(text)
  }

  async write (text: string): Promise<void> {
    this.#body.enqueue(new TextEncoder().encode(text))
    await settled()
  }

  async end (): Promise<void> {
    this.#body.close()
    await settled()
  }
}

function start (url = 'http://localhost/sse?subscription=a', cursor = 'e.1') {
  const roster = new Roster(new WebLocks(), 'group')
  const asked: Asked[] = []
  const posts: Report[] = []
  const client = {
    request (url: URL, cursor: string, signal: AbortSignal) {
      const one = new Asked(url, cursor, signal)
      asked.push(one)
      return one.response
    }
  } as unknown as SSEClient<any>
  const reading = new Reading(new URL(url), cursor, new Recent())
  const context: { -readonly [K in keyof LeaderContext]: LeaderContext[K] } = { client, roster, reading, post: message => { posts.push(message) } }
  const leader = new Leader(context)
  roster.set('own', reading.subscriptions)
  leader.owe(reading)
  leader.connect()
  return {
    leader,
    context,
    roster,
    reading,
    asked,
    last: () => asked.at(-1)!,
    /** Another tab joins. */
    async join (tab: string, cursor: string, subscriptions: readonly string[] = ['a'], fresh: readonly string[] = []): Promise<void> {
      roster.set(tab, subscriptions)
      leader.join({ type: 'join', tab, cursor, subscriptions, fresh, isRetry: false } satisfies Join)
      await settled()
    },
    /** What the tabs were told since the last call, other than entries: to whom, and the data of what they have missed. */
    told: () => posts.splice(0).flatMap(post => post.type === 'entries' || post.type === 'lead' || post.type === 'ended'
      ? []
      : [`${post.type} ${post.to}${post.type === 'joined' ? `: ${post.slice.entries.flatMap(({ text }) => /^data: (.*)$/m.exec(text)?.[1] ?? []).join(' ')}` : ''}`]),
    entries: () => posts.flatMap(post => post.type === 'entries' ? [[post.from, post.entries.map(({ text }) => text.length > 0)]] : []),
    /** Reads what this tab's client has received. */
    async text () {
      const { value } = await (await reading.response)!.body!.getReader().read()
      return new TextDecoder().decode(value)
    }
  }
}

t.test('the request: the subscriptions of all tabs instead of its own, at its own position', async t => {
  const { last, join } = start('http://localhost/sse?lastEventId=e.7&x=1&subscription=a&subscription=b&fresh=b', '')
  t.same([last().cursor, last().names, last().fresh, last().url.searchParams.get('x'), last().url.searchParams.has('lastEventId')], ['e.7', ['a', 'b'], ['b'], '1', false])
  await join('two', 'e.9', ['c'], ['c'])
  await last().open()
  t.same([last().cursor, last().names, last().fresh], ['e.7', ['a', 'b', 'c'], ['b', 'c']], 'again, when a tab has joined meanwhile')
})

t.test('what a tab has no state of', async t => {
  const fresh = (url: string, cursor: string) => {
    const { last } = start(`http://localhost/sse${url}`, cursor)
    return [last().cursor, last().fresh]
  }
  t.same(fresh('?subscription=a&fresh=a', ''), ['', []], 'without a cursor the server sends all')
  t.same(fresh('?subscription=a&subscription=b&fresh=b', 'e.1'), ['e.1', ['b']])
  t.same(fresh('?subscription=a&subscription=b&fresh=b', 'e.1!0'), ['e.1!0', ['a', 'b']], 'a state was not complete')
  t.same(fresh('', 'e.1!0'), ['e.1!0', ['**']])
  t.same(fresh('', 'e.1'), ['e.1', []])
})

t.test('a state is asked for until it has arrived, and again when it is needed again', async t => {
  const { last, join, asked, leader } = start('http://localhost/sse?subscription=a&subscription=b&fresh=b')
  await last().open('id: e.1!0\n\n')
  leader.connect()
  t.same(last().fresh, ['b'], 'an id that says that it has not')
  await last().open('event: state\ndata: 1\n\n')
  leader.connect()
  t.same(last().fresh, ['b'], 'an event without an id')
  await last().open('id: e.2\n\n')
  leader.connect()
  t.same(last().fresh, [])
  await last().open()
  const { length } = asked
  await join('two', 'e.2', ['b'], ['b'])
  t.same([asked.length, last().fresh], [length + 1, ['b']])
  await last().open('id: e.3\n\n')
  await join('two', 'e.3', ['b'], ['b'])
  t.same([asked.length, last().fresh], [length + 2, ['b']])

  const parts = start()
  await parts.join('two', 'e.1!0')
  await parts.last().open()
  await parts.last().open('data: part\n\n')
  parts.told()
  await parts.join('three', 'e.1!0')
  t.same([parts.asked.length, parts.told()], [2, ['joined three: part']], 'a tab that joins while it arrives')

  const long = start('http://localhost/sse?subscription=a', '')
  await long.last().open('data: x\n\n'.repeat(1_001))
  await long.join('two', '')
  t.equal(long.asked.length, 2, 'one whose beginning is not kept')

  const whole = start('http://localhost/sse?subscription=a', '')
  await whole.join('two', '', ['a'])
  await whole.last().open('data: 1\n\n')
  t.equal(whole.asked.length, 1, 'a stream from the beginning has the state of all')
  t.same(whole.told(), ['joined two: '])
  await whole.last().write('id: e.1\n\n')
  whole.leader.connect()
  t.same(whole.last().fresh, [])
})

t.test('tabs that join are answered once, with what they have not received', async t => {
  const { last, join, told, asked, entries, text } = start()
  await join('two', 'e.1')
  await join('two', 'e.1')
  t.same(told(), [], 'not before there is a stream')
  await last().open()
  t.same(told(), ['joined two: '])
  await last().write(blocks(2, 4))
  t.same(entries(), [[1, [true, true, true]]], 'the first entry is the position')
  await join('two', 'e.2')
  await join('three', 'e.4')
  await join('four', 'e.3')
  t.same(told(), ['joined two: e.3 e.4', 'joined three: ', 'joined four: e.4'])
  await last().write(blocks(5, 5))
  t.same([told(), asked.length], [[], 1])
  t.match(await text(), /^id: e\.2\n/)
})

t.test('a position that is not kept is asked for', async t => {
  const { last, join, told, asked } = start('http://localhost/sse?subscription=a', 'e.5')
  await last().open(blocks(6, 7))
  await join('two', 'e.3')
  t.same([asked.length, last().cursor, asked[0]!.signal.aborted, told()], [2, 'e.3', true, []])
  await last().open(blocks(4, 6))
  t.same(told(), ['joined two: '], 'it was answered when the stream began')
  await join('three', 'e.4')
  t.same([asked.length, told()], [2, ['joined three: e.5 e.6']])

  await last().write('data: x\n\n'.repeat(1_001))
  await join('four', '')
  t.same([asked.length, last().cursor], [3, 'e.6'], 'a tab without a position needs the beginning of a stream')
})

t.test('a stream with other subscriptions answers no tab with what came before it', async t => {
  const { last, join, told, asked } = start()
  await last().open(blocks(2, 5))
  await join('two', 'e.5', ['b'])
  t.same([asked.length, last().cursor, last().names], [2, 'e.5', ['a', 'b']])
  await last().open()
  told()
  await join('three', 'e.3', ['b'])
  t.same([asked.length, last().cursor], [3, 'e.3'], 'e.4 and e.5 are those of the first subscriptions')
  await last().open()
  t.same(told(), ['joined three: '])

  const same = start()
  await same.last().open(blocks(2, 5))
  same.leader.connect()
  await same.last().open()
  await same.join('two', 'e.3')
  t.same([same.asked.length, same.told()], [2, ['joined two: e.4 e.5']], 'a stream with the same ones does')
})

t.test('subscriptions that no tab wants any more are given back', async t => {
  const { last, join, roster, leader, asked } = start()
  await last().open()
  await join('two', 'e.1', ['b'])
  await last().open()
  t.same(last().names, ['a', 'b'])
  roster.delete('two')
  leader.serve()
  t.same([asked.length, last().names], [3, ['a']])
  await last().open()
  leader.serve()
  t.equal(asked.length, 3)
})

t.test('a tab of another log takes over, once this stream goes on in its own', async t => {
  const { last, join, told, asked } = start()
  await join('two', 'f.9')
  await last().open('id: e.1\n\n')
  t.same(told(), [], 'the server repeats the position')
  await last().write(block('e.2'))
  t.same(told(), ['take-over two'])
  await last().write(block('e.3'))
  t.same([told(), asked.length], [[], 1])
})

t.test('a tab that has left meanwhile does not decide the position', async t => {
  const { last, join, roster, leader, told } = start('http://localhost/sse?subscription=a', 'e.5')
  await join('two', 'e.2')
  roster.delete('two')
  leader.connect()
  t.equal(last().cursor, 'e.5')
  await last().open(blocks(6, 6))
  t.same(told(), [])
})

t.test('only the newest attempt counts', async t => {
  const { leader, asked, reading, entries, context } = start()
  let hasFailed = false
  reading.response.catch(() => { hasFailed = true })
  leader.connect()
  t.ok(asked[0]!.signal.aborted)
  await asked[1]!.open(blocks(2, 2))
  await asked[0]!.open(blocks(8, 9))
  t.same(entries(), [[0, [false]], [1, [true]]])
  leader.connect()
  await asked[1]!.write(blocks(3, 3))
  await asked[1]!.end()
  leader.connect()
  await asked[2]!.fail()
  await asked[3]!.open(blocks(3, 3))
  t.same(entries().slice(2), [[2, [false]], [3, [true]]])
  t.equal(hasFailed, false)
  let isOpen = true
  const body = (await reading.response)!.body!.getReader()
  const drain = (async () => { while (!(await body.read()).done); })().catch(() => { isOpen = false })
  leader.stop()
  await asked[3]!.write(blocks(4, 4))
  t.same([entries().length, isOpen], [4, true], 'a stream that was stopped')
  leader.serve()
  t.equal(asked.length, 4)
  leader.connect()
  await asked[4]!.open()
  await asked[4]!.end()
  await drain
  t.equal(isOpen, false, 'the end of the stream breaks that of the client')
  context.reading = null
  leader.connect()
  t.equal(asked.length, 5)

  const failing = start()
  await failing.last().fail()
  await t.rejects(failing.reading.response)
})

t.test('refusals that concern all tabs are passed on', async t => {
  for (const status of [401, 408, 425, 429, 500, 503]) {
    const { last, join, reading, told, asked } = start()
    await join('two', 'e.1', ['b'])
    await last().refuse(status)
    t.equal((await reading.response)?.status, status)
    t.same([told(), asked.length], [[], 1])
  }
  const signedOut = start()
  await signedOut.join('two', 'e.1', ['b'])
  await signedOut.last().answer(null)
  t.equal(await signedOut.reading.response, null)
  t.same(signedOut.told(), [])
})

t.test('tabs whose subscriptions can be the cause of a refusal read for themselves: those that were added, then all others', async t => {
  for (const status of [400, 403, 404, 499]) {
    const { last, join, told, asked, roster, leader, reading } = start()
    await last().open()
    await join('two', 'e.1', ['b'])
    await last().open()
    told()
    await join('three', 'e.1', ['b', 'c'])
    await join('four', 'e.1', ['a'])
    await last().refuse(status)
    t.same([told(), asked.length, last().names, roster.has('three')], [['alone three'], 4, ['a', 'b'], false], `${status}`)
    await last().open()
    t.same(told(), ['joined four: '])
    leader.connect()
    await last().refuse(status)
    t.same([told(), asked.length, last().names], [['alone two'], 6, ['a']])
    await last().open()
    leader.connect()
    await last().refuse(status)
    t.same([told(), asked.length], [[], 7], 'tabs with its own subscriptions share its refusal')
    const body = (await reading.response)!.body!.getReader()
    await t.rejects(body.read(), 'a stream that was open breaks')
  }
  const { last, reading } = start()
  await last().answer(new Response('<p>', { headers: { 'content-type': 'text/html' } }))
  t.equal((await reading.response)?.headers.get('content-type'), 'text/html')
})
