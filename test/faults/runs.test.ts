import { setTimeout as sleep } from 'node:timers/promises'
import type { Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { startNode, type TestNode, type TestStream } from '../../lib/testing/index.js'
import { openURL } from '../helpers/app.js'
import { browse, withoutChromium } from '../helpers/browser.js'
import { startFront } from '../helpers/front.js'
import { buildNode } from '../helpers/node.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { told, tokens } from '../helpers/runs.js'
import { until } from '../helpers/wait.js'

// Runs whose producer, readers' node or store fails: real processes, a real redis-server.

const LEASE_MS = 2_000
const main = buildNode(t, 'test/helpers/run-node.ts')
let prefixes = 0

async function startNodes (t: Test, server: RedisServer, count: number, leaseMs = LEASE_MS): Promise<TestNode[]> {
  const keyPrefix = `runs-${++prefixes}`
  return await Promise.all(Array.from({ length: count }, () => startNode(main, { test: t, args: [server.url, keyPrefix, String(leaseMs)], execArgv: [], timeoutMs: 60_000 })))
}

async function call (node: TestNode, method: string, path: string): Promise<any> {
  return await (await fetch(node.url + path, { method })).json()
}

const read = (t: Test, node: TestNode, id: string, lastEventId: string | null = null): Promise<TestStream> => openURL(t, `${node.url}/runs/${id}`, { lastEventId })

/** The tokens are 1, 2, 3 … without a hole or a repetition. */
function assertWhole (t: Test, stream: TestStream, what: string): void {
  const received = tokens(stream)
  t.same(received, received.map((_, n) => String(n + 1)), what)
}

interface Seen {
  tokens: string[]
  controls: [string, { status?: string, events?: number }][]
  isClosed: boolean
}

const seenBy = (page: Page): Promise<Seen> => page.evaluate('({ tokens, controls, isClosed: source.readyState === EventSource.CLOSED })')
const hasTokens = (page: Page, count: number) => until(async () => (await seenBy(page)).tokens.length >= count)

const endOf = (stream: TestStream): unknown => stream.named('sse:end').map(({ json }) => json.status)

t.test('runs and failures', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())

  t.test('the node of the source is killed: its readers on all nodes learn that the run is lost', async t => {
    const [one, other] = await startNodes(t, server, 2) as [TestNode, TestNode]
    await call(one, 'POST', '/runs/a')
    const streams = [await read(t, other, 'a'), await read(t, other, 'a')]
    for (const stream of streams) await stream.collect(20)
    await one.kill()
    const killedAt = Date.now()
    for (const stream of streams) {
      await stream.ended
      t.same(endOf(stream), ['lost'])
      assertWhole(t, stream, 'until then')
    }
    t.ok(Date.now() - killedAt >= LEASE_MS / 2, `after ${Date.now() - killedAt} ms`)
    t.same(told(streams[0]!), told(streams[1]!), 'both have the same')
    t.match(await call(other, 'POST', '/runs/a?count=3'), { started: true })
    const next = await read(t, other, 'a', streams[0]!.lastEventId)
    await next.ended
    t.same(told(next).map(([, event]) => event), ['sse:gap', 'message', 'message', 'message', 'sse:end'], 'the next generation, from the beginning')
  })

  t.test('a reader of a killed node continues on another one, without a hole', async t => {
    const [one, other] = await startNodes(t, server, 2) as [TestNode, TestNode]
    await call(one, 'POST', '/runs/a?count=200')
    const first = await read(t, other, 'a')
    await first.collect(50)
    await other.kill()
    await first.ended
    const second = await read(t, one, 'a', first.lastEventId)
    await second.ended
    t.same([...tokens(first), ...tokens(second)], Array.from({ length: 200 }, (_, n) => String(n + 1)))
    t.same(endOf(second), ['done'])
  })

  t.test('a producer that was stopped beyond its lease changes nothing when it wakes up', async t => {
    const [one, other] = await startNodes(t, server, 2) as [TestNode, TestNode]
    await call(one, 'POST', '/runs/a')
    const stream = await read(t, other, 'a')
    await stream.collect(20)
    one.freeze()
    await stream.ended
    t.same(endOf(stream), ['lost'])
    t.match(await call(other, 'POST', '/runs/a?count=100'), { started: true })
    const next = await read(t, other, 'a')
    await next.next()
    one.thaw()
    await next.ended
    assertWhole(t, next, 'of the second producer only')
    t.same([tokens(next).length, endOf(next)], [100, ['done']])
    await until(async () => (await call(one, 'GET', '/status/a')).status === 'done')
  })

  t.test('two nodes start the same run at the same time, again and again', async t => {
    const nodes = await startNodes(t, server, 2) as [TestNode, TestNode]
    let started = 0
    for (let n = 0; n < 40; n++) {
      const answers = await Promise.all(Array.from({ length: 6 }, async (_, i) => {
        await sleep(Math.random() * 4)
        return await call(nodes[i % 2]!, 'POST', `/runs/run${n}?count=2&pause=20`)
      }))
      started += answers.filter(answer => answer.started).length
      t.equal(new Set(answers.map(({ generation }) => generation)).size, answers.filter(answer => answer.started).length, `run ${n}`)
    }
    const calls = await Promise.all(nodes.map(node => call(node, 'GET', '/status/a')))
    t.equal(calls.reduce((sum, { calls }) => sum + calls, 0), started, 'one call of a source for each generation')
  })

  t.test('readers of a killed node do not keep a run with onDisconnect', async t => {
    const [one, other] = await startNodes(t, server, 2) as [TestNode, TestNode]
    await call(one, 'POST', '/runs/a?grace=1000')
    const stream = await read(t, other, 'a')
    await stream.collect(20)
    await other.kill()
    await until(async () => (await call(one, 'GET', '/status/a')).status === 'stopped')
  })

  t.test('stopped from another node, twice', async t => {
    const [one, other] = await startNodes(t, server, 2) as [TestNode, TestNode]
    await call(one, 'POST', '/runs/a')
    const stream = await read(t, one, 'a')
    await stream.collect(10)
    t.same(await Promise.all([call(other, 'DELETE', '/runs/a'), call(other, 'DELETE', '/runs/a')]), [{ stopped: true }, { stopped: true }])
    await stream.ended
    t.same(endOf(stream), ['stopped'])
    assertWhole(t, stream, 'until then')
  })

  t.test('a page in Chromium is reloaded, and its node is killed', { skip: withoutChromium }, async t => {
    const [one, other] = await startNodes(t, server, 2) as [TestNode, TestNode]
    const front = await startFront(t, other.port)
    await call(one, 'POST', '/runs/a')
    const page = (await browse(t, `${front.url}/pages/a`))!
    await hasTokens(page, 20)
    const before = (await seenBy(page)).tokens.length
    await page.reload()
    await hasTokens(page, before + 20)
    front.port = one.port
    await other.kill()
    await hasTokens(page, (await seenBy(page)).tokens.length + 20)
    await call(one, 'DELETE', '/runs/a')
    // An EventSource reconnects after the end, and is answered with 204.
    await until(async () => (await seenBy(page)).isClosed)
    const { tokens, controls } = await seenBy(page)
    t.same(tokens, tokens.map((_, n) => String(n + 1)), 'without a hole or a repetition')
    t.same(controls, [['sse:end', { status: 'stopped', events: tokens.length }]])
  })

  t.test('a page in Chromium on the node of the source, which is killed', { skip: withoutChromium }, async t => {
    const [one, other] = await startNodes(t, server, 2) as [TestNode, TestNode]
    const front = await startFront(t, one.port)
    await call(one, 'POST', '/runs/a')
    const page = (await browse(t, `${front.url}/pages/a`))!
    await hasTokens(page, 20)
    front.port = other.port
    await one.kill()
    await until(async () => (await seenBy(page)).isClosed)
    const { tokens, controls } = await seenBy(page)
    t.same(tokens, tokens.map((_, n) => String(n + 1)))
    t.same(controls, [['sse:end', { status: 'lost', events: tokens.length }]], 'all that was stored, and the end')
  })

  t.test('a node that shuts down: its runs are lost at once, and its readers continue elsewhere', async t => {
    const [one, other] = await startNodes(t, server, 2) as [TestNode, TestNode]
    await call(one, 'POST', '/runs/a')
    const [there, here] = [await read(t, other, 'a'), await read(t, one, 'a')]
    await there.collect(10)
    await here.collect(10)
    const stopped = one.stop()
    t.match(await here.ended, { reason: 'shutdown', reconnect: true })
    await there.ended
    t.same(endOf(there), ['lost'])
    await stopped
    const again = await read(t, other, 'a', here.lastEventId)
    await again.ended
    t.same([...tokens(here), ...tokens(again)], tokens(there))
  })
})

t.test('Redis is killed and comes back', { skip: withoutRedis }, async t => {
  const KEPT: Record<string, string[]> = {
    'appendfsync always': ['--appendonly', 'yes', '--appendfsync', 'always'],
    'appendfsync everysec': ['--appendonly', 'yes', '--appendfsync', 'everysec'],
    'nothing on disk': []
  }
  for (const [name, args] of Object.entries(KEPT)) {
    await t.test(name, async t => {
      const server = await RedisServer.start(...args)
      t.teardown(() => server.stop())
      const [one, other] = await startNodes(t, server, 2, 30_000) as [TestNode, TestNode]
      await call(one, 'POST', '/runs/a?count=300')
      const stream = await read(t, other, 'a')
      await stream.collect(50)
      await server.kill()
      await server.run()
      await stream.ended
      if (args.length === 0) {
        // The run is gone with the store, and no reader waits for it.
        t.same(endOf(stream), ['unknown'])
        assertWhole(t, stream, 'until then')
        await until(async () => (await call(one, 'GET', '/status/a')).status === null)
        t.match(await call(one, 'POST', '/runs/a?count=3'), { started: true }, 'its producer has ended, and the run can start again')
        return
      }
      // `kill -9` of Redis alone loses nothing that the kernel has. What a machine without power can lose leads to `sse:gap` and `lost`.
      t.same(stream.named('sse:gap'), [])
      assertWhole(t, stream, 'without a hole')
      t.same([tokens(stream).length, endOf(stream)], [300, ['done']])
    })
  }

  await t.test('a store that has lost its last events: the reader receives a gap, and the run is lost', async t => {
    const server = await RedisServer.start()
    t.teardown(() => server.stop())
    const [one, other] = await startNodes(t, server, 2, 30_000) as [TestNode, TestNode]
    await call(one, 'POST', '/runs/a')
    const stream = await read(t, other, 'a')
    await stream.collect(20)
    await server.ask('SAVE')
    await stream.collect(50)
    await server.kill()
    await server.run()
    await stream.ended
    t.equal(stream.named('sse:gap').length, 1)
    t.match(stream.named('sse:gap')[0]!.json, { reason: 'unknown' })
    t.same(endOf(stream), ['lost'])
    const afterGap = stream.events.slice(stream.events.findIndex(({ event }) => event === 'sse:gap') + 1).filter(({ event }) => event === 'message')
    t.same(afterGap.map(({ data }) => data), afterGap.map((_, n) => String(n + 1)), 'from the beginning')
    t.ok(afterGap.length >= 20)
  })
})
