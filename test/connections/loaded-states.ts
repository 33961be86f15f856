import t from 'tap'
import { Lead } from '../../lib/connections/lead.js'
import { LoadedStates, type LoadedState, type StateSender, type StateWaiter } from '../../lib/connections/loaded-states.js'
import { Unfinished } from '../../lib/connections/unfinished.js'
import { Frame } from '../../lib/delivery/frame.js'
import type { Target } from '../../lib/events/target.js'
import { testClock } from '../../lib/testing/index.js'
import { kClock, type Clock } from '../../lib/util/clock.js'
import { MemoryBudget } from '../../lib/util/memory-budget.js'

// The memory of loaded states: which of them give way, and that each byte is given back once.

/** A client of a state: whether it can be written to, and when it was last. Null: it has not begun to receive the state. */
type Client = [blocked: boolean, lastWriteAt: number | null]

/** States of 1,000 bytes in a memory of 10,000, of which `other` bytes are in use besides. */
async function states (clients: Client[][], other: number, now = 10_000) {
  const time = testClock()
  await time.advance(now)
  const budget = new MemoryBudget(10_000)
  const loaded = new LoadedStates(budget, (time.options as unknown as Record<typeof kClock, Clock>)[kClock])
  const gone: string[] = []
  for (const [n, list] of clients.entries()) {
    const frame = new Frame('', 'x'.repeat(1_000), 0)
    budget.hold(frame)
    const state = { heldBytes: 1_000, waiters: new Set<StateWaiter>(), senders: new Set<StateSender>() } satisfies LoadedState
    const leave = (what: string, set: Set<unknown>, client: unknown): void => {
      gone.push(`${what} ${n}`)
      set.delete(client)
      if (state.waiters.size + state.senders.size === 0) budget.release(frame)
      loaded.update(state)
    }
    for (const [blocked, lastWriteAt] of list) {
      if (lastWriteAt === null) state.waiters.add({ blocked, postpone () { leave('waiter', state.waiters, this) } })
      else state.senders.add({ blocked, lastWriteAt, giveWay () { leave('sender', state.senders, this) } })
    }
    loaded.update(state)
  }
  budget.add(other)
  return { budget, loaded, gone }
}

t.test('which states give way, and in which order', async t => {
  const cases: [name: string, clients: Client[][], needed: number, gone: string[]][] = [
    ['nothing is needed', [[[true, null]]], 1_000, []],
    ['one byte is', [[[true, null]]], 1_001, ['waiter 0']],
    ['a client that reads keeps its state', [[[false, null]]], 1_001, []],
    ['and one that others have', [[[true, null], [false, null], [true, null]]], 1_001, []],
    ['all that have it must not read', [[[true, null], [true, null], [true, 0]]], 1_001, ['waiter 0', 'waiter 0', 'sender 0']],
    ['for two seconds', [[[true, 8_000]], [[true, 8_001]]], 1_001, ['sender 0']],
    ['not all of them', [[[true, 8_000], [true, 8_001]]], 1_001, []],
    ['nor one that can be written to', [[[true, 0], [false, 0]]], 1_001, []],
    ['those first that no client has begun to receive', [[[true, 0]], [[true, null]], [[true, null]]], 1_001, ['waiter 1']],
    ['then the longest unread', [[[true, 7_000]], [[true, 5_000]], [[true, null]], [[true, 6_000]]], 3_500, ['waiter 2', 'sender 1', 'sender 3']],
    ['as many as are needed', [[[true, 1]], [[true, 2]], [[true, 3]]], 3_000, ['sender 0', 'sender 1']],
    ['and no more', [[[true, 1]], [[true, 2]], [[true, 3]]], 3_001, ['sender 0', 'sender 1', 'sender 2']],
    ['none in vain', [[[true, 1]], [[true, 2]], [[true, 3]]], 4_001, []],
    ['a state without clients is not there', [[]], 1_001, []]
  ]
  for (const [name, clients, needed, expected] of cases) {
    const { budget, loaded, gone } = await states(clients, 9_000 - 1_000 * clients.length)
    t.equal(loaded.makeRoom({ bytes: needed, holders: 0 }, 0), needed <= 1_000 + 1_000 * new Set(expected).size, name)
    t.strictSame(gone, expected, name)
    t.ok(budget.used <= 9_000)
  }
})

t.test('room beside is made if there is, and needs no stream to end', async t => {
  const { loaded, gone, budget } = await states([[[true, 1]], [[true, 2]], [[true, 3]]], 6_000)
  t.equal(loaded.makeRoom({ bytes: 1_001, holders: 0 }, 900), true)
  t.strictSame(gone, ['sender 0'])
  t.equal(loaded.makeRoom({ bytes: 2_001, holders: 0 }, 1_000), true)
  t.strictSame(gone, ['sender 0', 'sender 1', 'sender 2'], 'a byte more')
  t.equal(loaded.makeRoom({ bytes: 4_000, holders: 0 }, 9_000), true, 'what fits is not refused for what is beside')
  t.equal(budget.used, 6_000)
  const other = await states([[[true, 1]]], 8_000)
  let asked = 0
  other.budget.yielders.add({ giveBack () { other.budget.add(asked++ === 0 ? -1_000 : 0) } })
  t.equal(other.loaded.makeRoom({ bytes: 2_000, holders: 0 }, 0), true)
  t.strictSame([other.gone, asked], [[], 1], 'logged events are given back first')
  for (const [beside, count] of [[500, 1], [501, 2]] as const) {
    const { budget, loaded, gone } = await states([[[true, 1]]], 8_000)
    const given: number[] = []
    for (const n of [1, 2, 3]) budget.yielders.add({ giveBack () { budget.add(-1_000); given.push(n) } })
    t.equal(loaded.makeRoom({ bytes: 1_500, holders: 0 }, beside), true)
    t.strictSame([gone, given.length], [[], count], `${beside} bytes beside`)
  }
})

t.test('a state that all have left is not there any more', async t => {
  const { budget, loaded, gone } = await states([[[true, null]]], 8_000)
  const state = { heldBytes: 5_000, waiters: new Set<StateWaiter>([{ blocked: true, postpone () {} }]), senders: new Set<StateSender>() }
  loaded.update(state)
  state.waiters.clear()
  loaded.update(state)
  t.equal(loaded.makeRoom({ bytes: 2_500, holders: 0 }, 0), false)
  t.strictSame([gone, budget.used], [[], 9_000], 'it frees nothing, so no other gives way')
})

const textOf = (n: number) => `data: ${n}\n\n`

t.test('the blocks before all others: each byte is given back once, however they are taken', async t => {
  const frames = () => [1, 2, 3, 4].map(n => new Frame('', textOf(n), 0))
  const { bytes } = frames()[0]!
  for (const size of [1, bytes, bytes + 1, 2 * bytes, 3 * bytes, Infinity]) {
    const budget = new MemoryBudget(1e6)
    const lead = new Lead(frames(), 'e.1', budget)
    t.strictSame([lead.bytes, budget.used, lead.isState, lead.sent], [4 * bytes, 4 * bytes, true, false])
    const per = Math.min(4, Math.ceil(size / bytes))
    let text = ''
    for (let taken = 0; taken < 4;) {
      const block = lead.take(size, '!0')
      taken += block.frames.length
      text += block.text
      t.ok(block.frames.length === per || taken === 4, `${block.frames.length} of about ${size} bytes`)
      t.strictSame([lead.bytes, budget.used, lead.sent], [(4 - taken) * bytes, (4 - taken) * bytes, taken === 4])
    }
    t.equal(text, `${textOf(1)}${textOf(2)}${textOf(3)}id: e.1!0\n${textOf(4)}`, 'the last has the cursor')
    lead.discard()
    t.equal(budget.used, 0)
  }
  const budget = new MemoryBudget(1e6)
  const lead = new Lead(frames(), 'e.1', budget)
  lead.take(1, '')
  lead.discard()
  t.equal(budget.used, 0)
  t.strictSame(lead.take(1e6, '').frames, [], 'nothing follows')
  t.equal(lead.sent, true)
  const shared = frames()
  for (const frame of shared) budget.hold(frame)
  const other = new Lead(shared, 'e.1', budget)
  other.take(1, '')
  other.discard()
  t.equal(budget.used, 4 * bytes, 'others hold the same frames')
  t.equal(new Lead([frames()[0]!], 'e.1', budget).take(1, null).text, textOf(1), 'without a mark no cursor')
})

t.test('a cursor alone is sent once', async t => {
  for (const [mark, text] of [['', 'id: e.1\n\n'], ['!0', 'id: e.1!0\n\n'], [null, '']] as const) {
    const lead = new Lead([], 'e.1', new MemoryBudget(0))
    t.strictSame([lead.isState, lead.sent, lead.bytes], [false, false, 0])
    t.strictSame(lead.take(1, mark), { text, frames: [] })
    t.equal(lead.sent, true)
  }
})

t.test('frames that are being written: held once, and checked one by one', async t => {
  const budget = new MemoryBudget(1e6)
  const of = (target: Target | null) => new Frame('', textOf(1), 0, 0, null, target)
  const [all, ada, bob] = [of(null), of({ userIds: ['ada'] }), of({ userIds: ['bob'] })]
  const frames = [all, ada, bob]
  const unfinished = new Unfinished(frames, budget)
  t.equal(budget.used, all.bytes + ada.bytes + bob.bytes)
  const asked: Target[] = []
  t.equal(unfinished.isFor(target => asked.push(target) > 0), true)
  t.strictSame(asked, [ada.target, bob.target])
  for (const user of ['ada', 'bob']) t.equal(unfinished.isFor(({ userIds }) => userIds![0] === user), false, `not all are for ${user}`)
  t.equal(unfinished.isFor(() => false), false)
  unfinished.release()
  t.equal(budget.used, 0)
  t.equal(new Unfinished([all], budget).isFor(() => false), true, 'what has no target was made for this connection')
})
