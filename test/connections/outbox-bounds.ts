import t from 'tap'
import { gapFrame } from '../../lib/connections/control-frames.js'
import { Lead } from '../../lib/connections/lead.js'
import { Outbox } from '../../lib/connections/outbox.js'
import { Frame, FRAME_BYTES } from '../../lib/delivery/frame.js'
import { EventPriority } from '../../lib/index.js'
import { MemoryBudget } from '../../lib/util/memory-budget.js'

// The outbox at its bounds: what is refused, displaced or taken, to the byte, and what its owner is told.

const { LOW, NORMAL, HIGH, CRITICAL } = EventPriority

class Bench {
  readonly told: string[] = []
  readonly budget: MemoryBudget
  readonly outbox: Outbox

  constructor (limit = 1e6, memory = 1e6) {
    this.budget = new MemoryBudget(memory)
    this.outbox = new Outbox(limit, this.budget, { onDrop: reason => { this.told.push(reason) }, onLag: () => { this.told.push('lag') } })
  }

  /** Queues an event that uses so many bytes in all. Its text is its name, filled up. */
  push (name: string, bytes: number, priority: EventPriority = NORMAL, seq = 0, key: string | null = null): boolean {
    return this.outbox.push(new Frame('', name.padEnd(bytes - FRAME_BYTES - (key?.length ?? 0), '.'), priority, seq, key), seq === 0 ? 100 : seq - 1)
  }

  /** The names of what can be sent now, without the rest. */
  take (bytes = Infinity): string[] {
    return this.outbox.take(bytes, 'e', 100).frames.map(({ text }) => text.startsWith('event: sse:gap') ? 'gap' : text.replace(/\.+$/, ''))
  }
}

t.test('the limit of the outbox and of the memory, to the byte', async t => {
  for (const [limit, memory, reason] of [[2_000, 1e6, 'outbox'], [1e6, 2_000, 'memory']] as const) {
    for (const [bytes, fits] of [[999, true], [1_000, true], [1_001, false]] as const) {
      const bench = new Bench(limit, memory)
      t.equal(bench.push('a', 1_000), true)
      t.equal(bench.push('b', bytes), fits, `${bytes} bytes of ${reason}`)
      t.strictSame([bench.told, bench.outbox.dropped], fits ? [[], 0] : [[reason], 1])
      t.strictSame([bench.outbox.bytes, bench.outbox.boundedBytes, bench.budget.used], new Array(3).fill(fits ? 1_000 + bytes : 1_000))
      t.strictSame(bench.take(), fits ? ['a', 'b'] : ['a'])
      t.strictSame([bench.outbox.bytes, bench.budget.used], [0, 0])
    }
  }
  const bench = new Bench(1_000)
  t.equal(bench.push('large', 5_000), true, 'a single event can be larger')
  t.equal(bench.push('b', FRAME_BYTES + 1), false, 'and nothing waits beside it')
  t.equal(bench.push('logged', 500, LOW, 1), true, 'what is logged is read later')
  t.equal(bench.outbox.bytes, 5_000)
  const shared = new Bench(1e6, 2_000)
  const frame = new Frame('', 'x'.repeat(1_000), NORMAL)
  shared.budget.hold(frame)
  t.strictSame([1, 2, 3].map(() => shared.outbox.push(frame, 0)), [true, true, false], 'an event that others hold uses the memory of its objects only')
})

t.test('what makes room for what', async t => {
  // Four events of 1,000 bytes wait, two of them logged: at most 4,500.
  const cases: [name: string, newcomer: [bytes: number, priority: EventPriority, seq: number], taken: boolean, told: string[], left: string[]][] = [
    ['an ephemeral event displaces none of its priority', [1_000, LOW, 0], false, ['outbox'], ['high', 'normal 9', 'low 8', 'low']],
    ['but one that is less urgent', [1_000, NORMAL, 0], true, ['outbox'], ['high', 'normal 9', 'new', 'low 8']],
    ['and logged ones after those', [2_000, NORMAL, 0], true, ['outbox', 'lag'], ['high', 'normal 9', 'new']],
    ['as many as are needed', [2_501, NORMAL, 0], false, ['outbox', 'lag', 'outbox'], ['high', 'normal 9']],
    ['also of other priorities', [2_501, HIGH, 0], true, ['outbox', 'lag'], ['high', 'new']],
    ['an event that fits displaces none', [500, CRITICAL, 0], true, [], ['new', 'high', 'normal 9', 'low 8', 'low']],
    ['a logged event displaces ephemeral ones of its priority', [1_000, HIGH, 10], true, ['outbox'], ['high', 'new', 'normal 9', 'low 8']],
    ['oldest and least urgent first', [1_000, LOW, 10], true, ['outbox'], ['high', 'normal 9', 'low 8', 'new']],
    ['or is read later itself, with all that is less urgent', [2_600, NORMAL, 10], true, ['outbox', 'lag'], ['high']]
  ]
  for (const [name, [bytes, priority, seq], taken, told, left] of cases) {
    const bench = new Bench(4_500)
    bench.push('low', 1_000, LOW)
    bench.push('low 8', 1_000, LOW, 8)
    bench.push('high', 1_000, HIGH)
    bench.push('normal 9', 1_000, NORMAL, 9)
    t.equal(bench.push('new', bytes, priority, seq), taken, name)
    t.strictSame(bench.told, told, name)
    t.equal(bench.outbox.bytes, bench.budget.used)
    const order = bench.take()
    t.strictSame([...order].sort(), [...left].sort(), name)
    bench.outbox.discard()
    t.equal(bench.budget.used, 0)
  }
})

t.test('the owner is told once that it lags, until it is level', async t => {
  const bench = new Bench()
  bench.outbox.readLater(50)
  t.strictSame([bench.told, bench.outbox.lagging], [[], null], 'nothing is read later if nothing logged waits')
  bench.push('a', 500, NORMAL, 50)
  bench.outbox.readLater(51)
  t.strictSame(bench.outbox.lagging, { priority: NORMAL, after: 49 })
  bench.push('b', 500, HIGH, 52)
  bench.outbox.readLater(52)
  t.strictSame(bench.outbox.lagging, { priority: HIGH, after: 51 })
  bench.outbox.readLater(60)
  t.strictSame(bench.outbox.lagging, { priority: HIGH, after: 51 }, 'also if nothing waits')
  t.strictSame(bench.told, ['lag'])
  for (const priority of [HIGH, NORMAL, LOW]) bench.outbox.advance(priority, 52, 52)
  t.equal(bench.outbox.lagging, null)
  bench.push('c', 500, LOW, 53)
  bench.outbox.readLater(53)
  t.strictSame(bench.told, ['lag', 'lag'])
})

t.test('how much is taken', async t => {
  const gap = gapFrame('limit', '')
  const start = () => {
    const bench = new Bench()
    bench.push('a', FRAME_BYTES + 10)
    bench.push('b', FRAME_BYTES + 10)
    return bench
  }
  for (const [bytes, expected] of [[0, []], [1, ['a']], [10, ['a']], [11, ['a', 'b']]] as const) t.strictSame(start().take(bytes), expected)
  for (const [more, expected] of [[-1, ['gap']], [0, ['gap']], [1, ['gap', 'a']], [10, ['gap', 'a']], [11, ['gap', 'a', 'b']]] as const) {
    const bench = start()
    bench.outbox.restart(gap)
    t.strictSame([bench.outbox.idle, bench.outbox.place(100)], [false, null])
    t.strictSame(bench.take(gap.textBytes + more), expected, `${more} bytes beside the gap`)
    t.strictSame(bench.outbox.place(100), [100, 100, 100, 100])
  }
  const state = () => [new Frame('', 's'.padEnd(10, '.'), NORMAL), new Frame('', 't'.padEnd(10, '.'), NORMAL)]
  for (const [bytes, expected, isState] of [[0, [], true], [10, ['s'], true], [11, ['s', 't'], false], [20, ['s', 't'], false], [21, ['s', 't', 'a'], false], [31, ['s', 't', 'a', 'b'], false]] as const) {
    const bench = start()
    bench.outbox.leadWith(new Lead(state(), 'e.5', bench.budget))
    t.strictSame([bench.outbox.leads, bench.outbox.bytes, bench.outbox.boundedBytes], [true, 840, 820])
    t.strictSame(bench.take(bytes), expected, `${bytes} bytes of a state and what follows it`)
    t.equal(bench.outbox.leads, isState)
    t.equal(bench.budget.used, bench.outbox.bytes)
    bench.outbox.discard()
    t.equal(bench.budget.used, 0)
  }
  const both = start()
  both.outbox.restart(gap)
  both.outbox.leadWith(new Lead(state(), 'e.5', both.budget))
  t.strictSame(both.take(gap.textBytes), ['gap'], 'a gap event comes before the state')
  t.strictSame(both.take(), ['s', 't', 'a', 'b'])
})

t.test('gaps and leads replace what was there', async t => {
  const bench = new Bench()
  const lead = () => new Lead([new Frame('', 'state', NORMAL)], 'e.5', bench.budget)
  bench.outbox.leadWith(lead())
  bench.outbox.leadWith(lead())
  t.equal(bench.budget.used, 5, 'of two states, one is kept')
  bench.outbox.restart(gapFrame('epoch', 'first'))
  t.strictSame([bench.budget.used, bench.outbox.leads], [0, false], 'a state is part of what the gap replaces')
  bench.outbox.restart(gapFrame('trimmed', 'second'))
  bench.outbox.skip(gapFrame('limit', 'third'))
  const { text } = bench.outbox.take(1e6, 'e', 7)
  t.equal(text, 'id: e.7\nevent: sse:gap\ndata: {"reason":"epoch","lastEventId":"first"}\n\n', 'of several gaps, the client is told of the first')
  t.equal(bench.outbox.idle, true)
  bench.outbox.leadWith(new Lead([], 'e.5', bench.budget))
  t.strictSame([bench.outbox.idle, bench.outbox.leads], [false, false])
  t.equal(bench.outbox.take(0, 'e', 7).text, 'id: e.5\n\n')
  t.equal(bench.outbox.idle, true)
})

t.test('what is sifted out leaves no key and no byte', async t => {
  const { budget, outbox } = new Bench()
  const of = (user: string, seq: number) => new Frame('', user, NORMAL, seq, 'k'.repeat(seq > 0 ? 1 : 2), { userIds: [user] })
  for (const frame of [of('ada', 1), of('ada', 0), new Frame('', 'for all', NORMAL)]) outbox.push(frame, 1)
  outbox.sift(({ userIds }) => userIds![0] !== 'ada')
  for (const frame of [of('bob', 2), of('bob', 0)]) outbox.push(frame, 2)
  t.equal(outbox.bytes, budget.used)
  t.strictSame(outbox.take(1e6, 'e', 2).frames.map(({ text }) => text), ['for all', 'bob', 'bob'])
  t.strictSame([outbox.bytes, budget.used, outbox.idle], [0, 0, true])
})

t.test('a page is taken as far as there is room; events that nothing can free give way', async t => {
  const refill = (bench: Bench, seq: number, bytes = 500) => bench.outbox.refill(new Frame('', `${seq}`.padEnd(bytes - FRAME_BYTES, '.'), NORMAL, seq))
  for (const [bytes, taken] of [[500, true], [501, false]] as const) {
    const bench = new Bench(1_000)
    bench.outbox.startAt([0, 0, 9, 9], 9)
    t.equal(refill(bench, 1), true)
    t.equal(refill(bench, 2, bytes), taken, `${bytes} bytes`)
    t.strictSame(bench.outbox.lagging, { priority: NORMAL, after: taken ? 2 : 1 })
  }
  for (const [priority, name, taken] of [[HIGH, 'an event that can be sent', false], [NORMAL, 'one that waits for the page', true], [LOW, 'one that waits for all', true]] as const) {
    const bench = new Bench(1_000)
    bench.outbox.startAt([0, 0, 9, 9], 9)
    bench.push('a', 500, priority)
    bench.push('b', 500, priority)
    t.equal(refill(bench, 1), taken, name)
    t.strictSame(bench.told, taken ? ['outbox'] : [], 'one makes room')
    t.strictSame(bench.take(), taken ? ['1'] : ['a', 'b'])
  }
  const bench = new Bench(1_000)
  bench.outbox.startAt([0, 0, 9, 9], 9)
  bench.outbox.skip(gapFrame('limit', ''))
  bench.outbox.startAt([0, 0, 9, 9], 9)
  bench.push('a', 1_000, LOW)
  t.equal(refill(bench, 1), false, 'a gap event can be sent')
})

t.test('when all lanes begin to lag, each goes on after what waits in it', async t => {
  const { outbox } = new Bench()
  for (const seq of [11, 13]) outbox.push(new Frame('', `${seq}`, HIGH, seq), seq - 1)
  outbox.lagFrom(12)
  t.strictSame(outbox.lagging, { priority: CRITICAL, after: 12 })
  outbox.advance(CRITICAL, 14, 14)
  t.strictSame(outbox.lagging, { priority: HIGH, after: 13 })
  t.strictSame(outbox.place(14), [12, 12, 10, 14])
  t.strictSame(outbox.take(1e6, 'e', 14).frames.map(({ seq }) => seq), [11, 13])
  t.equal(outbox.isReading(HIGH, 13) && !outbox.isReading(HIGH, 12) && !outbox.isReading(NORMAL, 13), true)
})
