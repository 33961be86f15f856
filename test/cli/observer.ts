import t from 'tap'
import { Observer, type Limits } from '../../lib/cli/observer.js'

// What a stream shows, by texts that arrive at exact times.

type Step = readonly [ms: number, text: string]

const ALIVE = ': keep-alive\n\n'
const EVENT = 'data: 1\n\n'

/** Watches a stream on which these texts arrive, until a time, all in milliseconds. */
function observe (steps: readonly Step[], endMs: number, limits: Limits = { watchMs: 1_000_000 }) {
  const { now } = performance
  let ms = 5_000
  performance.now = () => ms
  try {
    const observer = new Observer(limits)
    const left = [observer.leftMs()]
    for (const [at, text] of steps) {
      ms = 5_000 + at
      observer.take(text)
      left.push(observer.leftMs())
    }
    ms = 5_000 + endMs
    const last = observer.leftMs()
    return { ...observer.observation('open'), left, last }
  } finally {
    performance.now = now
  }
}

t.test('times', async t => {
  t.match(observe([], 700), { durationMs: 700, firstTextMs: null, longestSilenceMs: 700, lastSilenceMs: 700, beginning: '' })
  t.match(observe([[30, EVENT], [500, EVENT], [600, EVENT]], 700), { durationMs: 700, firstTextMs: 30, longestSilenceMs: 470, lastSilenceMs: 100, beginning: EVENT.repeat(3) })
  t.match(observe([[300, EVENT], [400, EVENT]], 450), { firstTextMs: 300, longestSilenceMs: 300 }, 'before the first text')
  t.match(observe([[10, EVENT]], 900), { longestSilenceMs: 890 }, 'before the end')
})

t.test('text after a pause is another arrival', async t => {
  for (const [pauseMs, found] of [[49, { singles: 0, lumps: 1 }], [50, { singles: 2, lumps: 0 }]] as const) {
    t.match(observe([[0, ': open\n\n'], [300, EVENT], [300 + pauseMs, EVENT]], 1_000), found, `${pauseMs} ms`)
  }
  for (const [pauseMs, lumps] of [[29, 1], [30, 0]] as const) {
    t.match(observe([[0, ': stream keep-alive=60\n\n'], [200, EVENT], [200 + pauseMs, EVENT]], 250), { announcedMs: 60, lumps }, `${pauseMs} ms, with keep-alives every 60 ms`)
  }
  t.match(observe([[0, EVENT + EVENT], [300, EVENT]], 400), { singles: 1, lumps: 0, events: 3 }, 'the first text is not counted')
})

t.test('keep-alives', async t => {
  for (const [silenceMs, keepAliveMs] of [[249, null], [250, 250]] as const) t.match(observe([[0, ': open\n\n'], [silenceMs, ALIVE]], 1_000), { keepAliveMs }, `${silenceMs} ms`)
  for (const [silenceMs, keepAliveMs] of [[499, null], [500, 500]] as const) t.match(observe([[0, ': stream keep-alive=1000\n\n'], [silenceMs, ALIVE]], 1_000), { keepAliveMs }, `${silenceMs} of 1,000 ms`)
  t.match(observe([[0, ': open\n\n'], [300, ALIVE], [1_000, ALIVE]], 1_100), { keepAliveMs: 700, bunches: 0, last: 0 }, 'two are enough, and the longest silence counts')
  t.match(observe([[0, ': open\n\n'], [700, ALIVE], [1_000, ALIVE]], 1_100), { keepAliveMs: 700 })
  t.ok(observe([[0, ': open\n\n'], [300, ALIVE]], 1_000).last > 0, 'one is not enough')
  t.match(observe([[0, ': open\n\n'], [300, ALIVE + ALIVE], [600, ALIVE + ALIVE], [700, ALIVE + ALIVE]], 1_000), { bunches: 2 })
  t.match(observe([[0, 'id: 1\n\n'], [300, 'id: 1\n\n']], 600), { keepAliveMs: 300 }, 'a cursor alone')
  t.match(observe([[0, ': open\n\n'], [300, 'event: sse:ping\ndata: {}\n\n']], 600), { keepAliveMs: 300, events: 0, lastEvent: null }, 'a ping')
})

t.test('keep-alives of a timer among events do not show what a silent connection does', async t => {
  const among: Step[] = [[0, ': open\n\n'], [300, EVENT], [600, ALIVE], [900, EVENT], [1_200, ALIVE]]
  t.match(observe(among, 1_500), { keepAliveMs: null, singles: 2 })
  t.match(observe([...among, [1_700, ALIVE]], 2_000), { keepAliveMs: 500 }, 'a second one after an event does')
  t.match(observe([[0, ': stream keep-alive=400\n\n'], [300, EVENT], [600, ALIVE]], 700), { keepAliveMs: 300 }, 'so do those of this package')
  t.match(observe([[0, ': open\n\n'], [300, EVENT + ALIVE], [650, ALIVE]], 1_000), { keepAliveMs: null })
})

t.test('events that come alone, several at once, and in parts', async t => {
  const half = 'data: 0123'
  const rest = '456789\n\n'
  t.match(observe([[0, ': open\n\n'], [100, EVENT], [200, EVENT + EVENT], [300, EVENT]], 400), { singles: 2, lumps: 1, events: 4 })
  t.match(observe([[0, ': open\n\n'], [100, EVENT + half], [1_099, rest]], 2_000), { singles: 0, lumps: 0, torn: 0 }, 'the network can delay a part')
  t.match(observe([[0, ': open\n\n'], [100, EVENT + half], [1_100, rest]], 2_000), { singles: 0, torn: 1 })
  t.match(observe([[0, ': open\n\n'], [100, EVENT + EVENT + half], [1_100, rest + EVENT + half], [2_100, rest]], 3_000), { lumps: 2, torn: 2 })
  for (const [end, torn] of [['data: 1\n', 1], ['data: 1\r', 1], ['data: 1\r\n', 1], ['data: 1\n\n', 0], ['data: 1\r\r', 0], ['data: 1\r\n\r\n', 0], [': a', 0], [': a\n', 0], ['data: 1\n\n: a', 0], ['data: 1\n\nd', 1], [`data: 1\n\ndata: ${'x'.repeat(3_000)}`, 1]] as const) {
    t.equal(observe([[0, ': open\n\n'], [100, end], [2_000, EVENT]], 3_000).torn, torn, JSON.stringify(end.slice(0, 20)))
  }
  t.match(observe([[0, ': open\n\n'], [300, `${ALIVE}data`]], 1_000), { keepAliveMs: null }, 'a keep-alive with the beginning of an event')
})

t.test('when nothing more can be told', async t => {
  const { left, last } = observe([[100, EVENT], [300, EVENT]], 1_000, { watchMs: 1_000, giveUpMs: 400 })
  t.same(left, [400, 50, 50], 'until the first text, then until the next pause')
  t.equal(last, 0)
  t.equal(observe([], 400, { watchMs: 1_000, giveUpMs: 400 }).last, 0, 'no text')
  t.equal(observe([], 399, { watchMs: 1_000, giveUpMs: 400 }).last, 1)
  t.equal(observe([], 300, { watchMs: 200, giveUpMs: 400 }).last, -100)
  t.equal(observe([[100, EVENT]], 400, { watchMs: 1_000, giveUpMs: 400 }).last, 600)
  t.equal(observe([[100, EVENT]], 149).last, 1, 'the rest of the pause')
  t.equal(observe([[100, ': stream keep-alive=1000\n\n']], 400).last, 2_701, 'a server that has announced its interval is late then')
  t.equal(observe([[100, ': stream keep-alive=1000\n\n']], 3_101).last, 0)
  t.equal(observe([[100, ': stream keep-alive=1000\n\n']], 3_100).last, 1)
  t.equal(observe([[100, ': stream keep-alive=1000\n\n']], 3_000, { watchMs: 3_050 }).last, 50)
})

t.test('the last event that is wanted ends the watch', async t => {
  const seen = observe([[0, 'id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\ndata: c\n\n']], 10, { watchMs: 1_000, isLast: ({ id }) => id === '2' })
  t.match(seen, { events: 2, firstEvent: { id: '1' }, lastEvent: { id: '2' }, newestEvent: { id: '2' }, previousEvent: { id: '1' }, left: [1_000, 0], last: 0 })
})

t.test('ids and other fields', async t => {
  const seen = observe([[0, ': stream\n\nretry: 5\n\nid: 1\ndata: a\n\ndata: b\n\nid: 1\ndata: c\n\nid: 2\ndata: d\n\nid: 2\ndata: e\n\nid: 3\n\n']], 10)
  t.match(seen, { isOwn: true, announcedMs: null, retryMs: 5, events: 5, lastEventId: '3', firstEvent: { data: 'a' }, lastEvent: { data: 'e' }, newestEvent: { id: '2', data: 'd' }, previousEvent: { id: '1', data: 'a' }, isOverlong: false })
  t.match(observe([[0, ': streams keep-alive=7\n\n']], 10), { isOwn: false, announcedMs: null })
  t.match(observe([[0, ': stream keep-alive=0\n\n']], 10), { isOwn: true, announcedMs: null })
})

t.test('the beginning is kept, and not the rest', async t => {
  const part = 'x'.repeat(32_768)
  t.equal(observe([[0, part], [1, part.slice(1)], [2, part], [3, part]], 10).beginning.length, 3 * 32_768 - 1)
  t.equal(observe([[0, part], [1, part], [2, part]], 10).beginning.length, 2 * 32_768)
})
