import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { RunClaim, RunClaimed, RunEvents, RunHeld, RunKey, RunLease, RunStore } from '../log/run-store.js'
import { PAGE_EVENTS, runKey } from '../log/run-store.js'
import { encodeEvent } from '../wire/event-stream.js'
import type { RunTest } from './broker-contract.js'
import { within } from './broker-harness.js'

// Tests of the guarantees that the interface `RunStore` describes.

/** Creates a run store. Stores with the same name are those of two nodes, if they are shared. The suite closes them. */
export type CreateRunStore = (name: string) => RunStore

/** Options of `runStoreContract()`. */
export interface RunStoreContractOptions {
  /** Whether several nodes share the runs. `true` adds the tests with leases and with two nodes. Default false. */
  shared?: boolean
}

/** A store, and the news that it has reported. */
interface Node {
  readonly store: RunStore
  readonly news: string[]
  /** Those that came with news. */
  readonly events: RunEvents[]
  readonly ends: string[]
}

const LEASE_MS = 60_000
const TTL_MS = 60_000
let counter = 0

/**
 * Tests a run store against the guarantees of the interface `RunStore`.
 * @param name prefix of the name of each test
 * @example runStoreContract(test, 'mine', name => myRuns({ name }), { shared: true })
 */
export function runStoreContract (test: RunTest, name: string, create: CreateRunStore, { shared = false }: RunStoreContractOptions = {}): void {
  const check = (what: string, run: (join: () => Node, key: (runId?: string, ownerId?: string | null) => RunKey) => Promise<void>) => test(`${name}: ${what}`, async () => {
    const place = `runs-${process.pid}-${++counter}`
    const nodes: Node[] = []
    try {
      await run(() => {
        const node: Node = { store: create(place), news: [], events: [], ends: [] }
        node.store.watch({
          news: (id, events) => {
            node.news.push(id)
            if (events !== undefined) node.events.push(events)
          },
          ended: id => { node.ends.push(id) }
        })
        nodes.push(node)
        return node
      }, (runId = 'a', ownerId = null) => runKey(runId, ownerId))
    } finally {
      await Promise.all(nodes.map(({ store }) => store.close()))
    }
  })

  check('of many claims, one starts a generation, and the others return it', async (join, key) => {
    const { store } = join()
    const claims = await Promise.all(Array.from({ length: 20 }, (_, n) => store.claim(claim(key(), { token: `t${n}` }))))
    assert.equal(claims.filter(({ started }) => started).length, 1)
    assert.equal(new Set(claims.map(({ state }) => state.generation)).size, 1)
    assert.deepEqual({ ...claims[0]!.state, generation: 0, startedAt: 0 }, { generation: 0, status: 'running', reason: undefined, events: 0, startedAt: 0, endedAt: null, settings: 'settings', isRead: false })
  })

  check('a claim that is repeated has started its run', async (join, key) => {
    const { store } = join()
    const first = await store.claim(claim(key()))
    const again = await store.claim(claim(key()))
    assert.deepEqual([first.started, again.started, again.state.generation], [true, true, first.state.generation])
  })

  check('events are numbered and read in order, whole, in pages', async (join, key) => {
    const { store } = join()
    const { lease } = await begin(store, key())
    const texts = Array.from({ length: 900 }, (_, n) => text(`${n} ${n < 600 ? '' : 'é\n'.repeat(n % 300)}`))
    assert.equal((await store.append(lease, 0, texts.slice(0, 10)))!.events, 10)
    assert.equal((await store.append(lease, 10, texts.slice(10)))!.events, 900)
    assert.equal((await store.append(lease, 900, []))!.events, 900)
    for (const start of [0, 5, 10, 899, 900]) {
      const read: string[] = []
      for (;;) {
        const { state, texts } = await store.read(key(), lease.generation, start + read.length, false)
        assert.equal(state!.events, 900)
        if (texts.length === 0) break
        assert.ok(texts.join('').length < 256 * 1024 && texts.length <= PAGE_EVENTS, 'a page is bounded')
        read.push(...texts)
      }
      assert.deepEqual(read, texts.slice(start))
    }
    assert.deepEqual((await store.read(key(), lease.generation + 1, 0, false)).texts, [], 'of another generation')
    assert.deepEqual((await store.read(key(), lease.generation, 1_500, false)).texts, [], 'ahead')
    assert.deepEqual(await store.read(key('other'), lease.generation, 0, false), { state: null, texts: [] })
  })

  check('only the lease appends, only at the end of the log', async (join, key) => {
    const { store } = join()
    const { lease } = await begin(store, key())
    await store.append(lease, 0, [text('1')])
    const events = async () => (await store.read(key(), lease.generation, 0, false)).texts.length
    assert.equal(await store.append({ ...lease, token: 'other' }, 1, [text('x')]), null)
    assert.equal(await store.append({ ...lease, generation: lease.generation - 1 }, 1, [text('x')]), null)
    assert.equal(await store.append(lease, 2, [text('x')]), null)
    assert.equal(await store.append({ ...lease, key: key('b') }, 0, [text('x')]), null)
    assert.equal(await events(), 1)
    assert.equal((await store.finish(key(), { status: 'done' }, held(lease, 1)))!.status, 'done')
    assert.equal(await store.append(lease, 1, [text('late')]), null, 'after the end')
    assert.equal(await events(), 1)
  })

  check('a run ends once, and the first end counts', async (join, key) => {
    const { store } = join()
    const { lease } = await begin(store, key())
    assert.equal((await store.finish(key(), { status: 'done' }, held({ ...lease, token: 'other' }, 0)))!.status, 'running', 'another producer does not end it')
    assert.equal(await store.finish(key(), { status: 'done' }, held({ ...lease, generation: lease.generation - 1 }, 0)), null)
    const [one, other] = await Promise.all([store.finish(key(), { status: 'stopped' }), store.finish(key(), { status: 'failed', reason: 'timeout' }, held(lease, 0))])
    assert.deepEqual([one!.status, one!.reason], [other!.status, other!.reason])
    assert.equal(one!.endedAt! >= one!.startedAt, true)
    assert.deepEqual((await store.get(key()))!.status, one!.status)
    assert.equal(await store.finish(key('other'), { status: 'stopped' }), null)
  })

  check('a run whose store has lost events of its producer is lost', async (join, key) => {
    const { store } = join()
    const { lease } = await begin(store, key())
    await store.append(lease, 0, [text('1')])
    assert.equal((await store.finish(key(), { status: 'done' }, held(lease, 2)))!.status, 'lost')
  })

  check('an ended run is replaced by a greater generation, or returned', async (join, key) => {
    const { store } = join()
    const { lease } = await begin(store, key())
    await store.append(lease, 0, [text('old')])
    await store.finish(key(), { status: 'done' }, held(lease, 1))
    const joined = await store.claim(claim(key(), { token: 'x', joinFinished: true }))
    assert.deepEqual([joined.started, joined.state.generation, joined.state.status], [false, lease.generation, 'done'])
    const next = await store.claim(claim(key(), { token: 'y' }))
    assert.deepEqual([next.started, next.state.generation > lease.generation, next.state.events], [true, true, 0])
    const page = await store.read(key(), lease.generation, 0, false)
    assert.deepEqual([page.texts, page.state!.generation], [[], next.state.generation])
    assert.deepEqual((await store.read(key(), next.state.generation, 0, false)).texts, [])
  })

  check('runs that start at the same time have ids of their own', async (join, key) => {
    const { store } = join()
    const claims = await Promise.all(Array.from({ length: 8 }, (_, n) => store.claim(claim(key(`run ${n}`)))))
    assert.equal(new Set(claims.map(({ state: { generation } }) => generation)).size, claims.length)
  })

  check('owners and ids do not mix, and an owner lists the own runs, newest first', async (join, key) => {
    const { store } = join()
    const pairs: [string, string | null][] = [['c', null], ['c', ''], ['b:c', 'a'], ['c', 'a:b'], ['c', 'null'], ['c', '-'], ['1:a:c', null], ['c', 'a']]
    const leases: RunLease[] = []
    for (const [runId, ownerId] of pairs) leases.push((await begin(store, key(runId, ownerId))).lease)
    assert.equal(new Set(pairs.map(([runId, ownerId]) => runKey(runId, ownerId).text)).size, pairs.length)
    for (const [n, lease] of leases.entries()) await store.append(lease, 0, [text(String(n))])
    for (const [n, { key, generation }] of leases.entries()) assert.deepEqual((await store.read(key, generation, 0, false)).texts, [text(String(n))])
    assert.deepEqual((await store.list(null)).map(({ runId }) => runId).sort(), ['1:a:c', 'c'])
    await within(async () => (await begin(store, key('later', 'a'))).lease.generation > leases[7]!.generation, () => 'another run')
    assert.deepEqual((await store.list('a')).map(({ runId }) => runId), ['later', 'c', 'b:c'])
    assert.deepEqual(await store.list('nobody'), [])
  })

  check('a run is removed ttlMs after its end', async (join, key) => {
    const { store } = join()
    const { lease } = await begin(store, key(), { ttlMs: 200 })
    await sleep(400)
    assert.equal((await store.append(lease, 0, [text('1')]))!.status, 'running', 'not while it is running')
    await store.finish(key(), { status: 'done' }, held(lease, 1))
    await within(async () => await store.get(key()) === null, () => 'the run is removed')
    assert.deepEqual(await store.list(null), [])
  })

  check('readers are reported to the producer until they leave', async (join, key) => {
    const { store, news, ends } = join()
    const { lease } = await begin(store, key())
    await store.read(key(), lease.generation, 0, false)
    assert.equal((await store.append(lease, 0, [text('1')]))!.isRead, false)
    await store.read(key(), lease.generation, 0, true)
    assert.equal((await store.append(lease, 1, [text('2')]))!.isRead, true)
    await within(() => news.includes(key().text), () => 'the reader has news')
    await store.finish(key(), { status: 'stopped' })
    await within(() => ends.includes(key().text), () => 'the end is reported')
    await store.leave(key())
    assert.equal((await store.get(key()))!.isRead, false)
  })

  check('after close every call rejects', async (join, key) => {
    const { store } = join()
    const { lease } = await begin(store, key())
    await store.close()
    for (const call of [() => store.claim(claim(key('b'))), () => store.append(lease, 0, [text('1')]), () => store.finish(key(), { status: 'done' }), () => store.get(key()), () => store.read(key(), lease.generation, 0, true), () => store.list(null)]) await assert.rejects(async () => await call(), { code: 'SSE_ERR_CLOSED' })
    await store.close()
  })

  if (!shared) return

  check('an append that is repeated after its reply was lost is appended once', async (join, key) => {
    const { store } = join()
    const { lease } = await begin(store, key())
    await store.append(lease, 0, [text('1'), text('2')])
    assert.equal((await store.append(lease, 0, [text('1'), text('2')]))!.events, 2)
    await store.append(lease, 2, [text('3')])
    assert.equal(await store.append(lease, 0, [text('1'), text('2')]), null, 'an older one')
    assert.deepEqual((await store.read(key(), lease.generation, 0, false)).texts, [text('1'), text('2'), text('3')])
  })

  check('nodes see the same runs, and one claim of all nodes starts a run', async (join, key) => {
    const [one, other] = [join(), join()]
    const claims = await Promise.all([one, other, one, other].map(({ store }, n) => store.claim(claim(key(), { token: `t${n}` }))))
    assert.equal(claims.filter(({ started }) => started).length, 1)
    const token = `t${claims.findIndex(({ started }) => started)}`
    const lease = { ...leaseOf(key(), claims[0]!, token) }
    await other.store.read(key(), lease.generation, 0, true)
    assert.equal((await one.store.append(lease, 0, [text('1')]))!.isRead, true)
    await within(() => other.news.includes(key().text), () => 'the reading node has news')
    assert.deepEqual((await other.store.read(key(), lease.generation, 0, true)).texts, [text('1')])
    assert.equal((await other.store.finish(key(), { status: 'stopped' }))!.status, 'stopped')
    const producer = claims[0]!.started || claims[2]!.started ? one : other
    await within(() => producer.ends.includes(key().text), () => 'the node of the producer is told')
    assert.equal(await one.store.append(lease, 1, [text('2')]), null)
    assert.deepEqual((await one.store.list(null)).map(({ state: { status } }) => status), ['stopped'])
  })

  check('events that come with news are those that are stored', async (join, key) => {
    const [one, other] = [join(), join()]
    const { lease } = await begin(one.store, key())
    await other.store.read(key(), lease.generation, 0, true)
    const texts = Array.from({ length: 40 }, (_, n) => text('x'.repeat(n % 10 === 9 ? 70_000 : n)))
    for (let after = 0; after < texts.length;) {
      const portion = texts.slice(after, after + 1 + after % 3)
      await one.store.append(lease, after, portion)
      after += portion.length
    }
    await within(() => other.news.length > 0, () => 'the reading node has news')
    for (const { generation, after, texts: told } of other.events) {
      assert.equal(generation, lease.generation)
      assert.deepEqual(told, texts.slice(after, after + told.length))
    }
  })

  check('without renewal a run is lost, whoever looks first, and its producer cannot go on', async (join, key) => {
    const [one, other] = [join(), join()]
    const looks: ((runId: string, generation: number) => Promise<unknown>)[] = [
      runId => other.store.get(key(runId)),
      async (runId, generation) => (await other.store.read(key(runId), generation, 0, true)).state,
      async runId => (await other.store.claim(claim(key(runId), { token: 'x', joinFinished: true }))).state,
      runId => other.store.finish(key(runId), { status: 'stopped' })
    ]
    for (const [n, look] of looks.entries()) {
      const { lease } = await begin(one.store, key(`run ${n}`), { leaseMs: 150 })
      await one.store.append(lease, 0, [text('1')])
      await sleep(400)
      assert.equal((await look(`run ${n}`, lease.generation) as { status: string }).status, 'lost')
      assert.equal(await one.store.append(lease, 1, [text('2')]), null)
      assert.equal((await one.store.finish(key(`run ${n}`), { status: 'done' }, held(lease, 1)))!.status, 'lost')
    }
  })

  check('appends and renewals keep the lease', async (join, key) => {
    const { store } = join()
    const { lease } = await begin(store, key(), { leaseMs: 2_000, ttlMs: 1 })
    for (let n = 0; n < 6; n++) {
      await sleep(500)
      assert.notEqual(await store.append(lease, n - n % 2, n % 2 === 0 ? [] : [text('x'), text('y')]), null, `${n}`)
    }
  })
}

function text (data: string): string {
  return encodeEvent('message', data)
}

function claim (key: RunKey, more: Partial<RunClaim> = {}): RunClaim {
  return { key, token: 'token', leaseMs: LEASE_MS, ttlMs: TTL_MS, joinFinished: false, settings: 'settings', ...more }
}

function leaseOf (key: RunKey, { state: { generation } }: RunClaimed, token: string, leaseMs = LEASE_MS, ttlMs = TTL_MS): RunLease {
  return { key, generation, token, leaseMs, ttlMs }
}

async function begin (store: RunStore, key: RunKey, more: Partial<RunClaim> = {}): Promise<{ lease: RunLease }> {
  const wanted = claim(key, more)
  return { lease: leaseOf(key, await store.claim(wanted), wanted.token, wanted.leaseMs, wanted.ttlMs) }
}

function held (lease: RunLease, after: number): RunHeld {
  return { lease, after }
}
