import t, { type Test } from 'tap'
import { createPublisher, SSEManager, type PublisherOptions, type SSEPublisher } from '../../lib/index.js'
import { redisStreamsBroker, type RedisStreamsOptions } from '../../lib/redis.js'
import { startNode, type TestNode, type TestStream } from '../../lib/testing/index.js'
import { serve } from '../helpers/app.js'
import { buildNode } from '../helpers/node.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { serveRuns, tokens } from '../helpers/runs.js'
import { until } from '../helpers/wait.js'

// Publishers beside web nodes: a real redis-server, workers as real processes.

const worker = buildNode(t, 'test/helpers/worker.ts')
const UNAVAILABLE = { code: 'SSE_ERR_BROKER_UNAVAILABLE', statusCode: 503 }
const texts = (stream: TestStream) => stream.named('n').map(({ data }) => data)
const endOf = (stream: TestStream): unknown => stream.named('sse:end').map(({ json }) => json.status)
const numbers = (count: number) => Array.from({ length: count }, (_, n) => String(n + 1))

function startWorker (t: Test, server: RedisServer, keyPrefix: string, task: 'publish' | 'produce', count: number): Promise<TestNode> {
  return startNode(worker, { test: t, args: [server.url, keyPrefix, task, String(count)], execArgv: [], timeoutMs: 60_000 })
}

async function start (t: Test): Promise<RedisServer> {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  return server
}

const brokerAt = (server: RedisServer, options: Partial<RedisStreamsOptions> = {}) => redisStreamsBroker({ client: server.url, startTimeoutMs: 20_000, ...options })

function publisherAt (t: Test, server: RedisServer, broker: Partial<RedisStreamsOptions> = {}, options: Partial<PublisherOptions> = {}): SSEPublisher {
  const publisher = createPublisher({ ...options, broker: brokerAt(server, broker) })
  t.teardown(() => publisher.close())
  return publisher
}

t.test('publishers', { skip: withoutRedis }, async t => {
  t.test('a worker publishes: nothing is read, and a web node delivers the events with their ids', async t => {
    const server = await start(t)
    const done = await startWorker(t, server, 'sse', 'publish', 50)
    await until(() => !done.isRunning)
    const { ids, position, openMs, loadMs } = JSON.parse(done.output) as { ids: string[], position: string, openMs: number, loadMs: number }
    t.comment(`a worker has loaded the package after ${loadMs} ms, and is connected ${openMs} ms later`)
    t.equal(position, ids.at(-1))
    t.same(await Promise.all(['xread', 'xreadgroup', 'xrevrange', 'subscribe'].map(command => server.calls(command))), [0, 0, 0, 0])
    t.equal(await server.calls('evalsha') > 50, true, 'calls are counted at all')

    const { join } = await serve(t, { broker: brokerAt(server) })
    const resumed = await join(null, ['topic'], { cursor: ids[9]! })
    const live = await join(null, ['topic'], { cursor: position })
    const next = await startWorker(t, server, 'sse', 'publish', 20)
    for (const { stream } of [resumed, live]) await until(() => texts(stream).length >= 20 && stream.named('n').at(-1)!.data === '20')
    t.same(texts(resumed.stream), [...numbers(50).slice(10), ...numbers(20)])
    t.same(texts(live.stream), numbers(20))
    await until(() => !next.isRunning)
    t.same(live.stream.named('n').map(({ id }) => id), JSON.parse(next.output).ids)
    t.equal(resumed.stream.named('sse:gap').length, 0)
  })

  t.test('a publish without Redis is rejected as on a node, and the publisher recovers', async t => {
    const server = await RedisServer.prepare()
    t.teardown(() => server.stop())
    const publisher = publisherAt(t, server, { startTimeoutMs: 300 })
    const publish = () => publisher.broadcastEvent({ event: 'n', data: 'x' })
    await t.rejects(publish(), { ...UNAVAILABLE, message: /could not be reached within 300 ms/ })
    await t.rejects(publisher.position(), UNAVAILABLE)
    await t.rejects(publisher.listRuns({ ownerId: null }), UNAVAILABLE)
    await server.run()
    t.match(await until(() => publish().catch(() => null)), { id: /^\w+\.\w+$/, delivered: 0 })

    const node = new SSEManager({ broker: brokerAt(server) })
    t.teardown(() => node.close())
    await node.open()
    await server.kill()
    const [own, ofNode] = await Promise.all([publisher, node].map(async it => await until(() => it.broadcastEvent({ event: 'n', data: 'x' }).then(() => null, error => error))))
    t.match(own, UNAVAILABLE)
    t.match(ofNode, UNAVAILABLE)
    await t.rejects(publish(), { ...UNAVAILABLE, message: /nothing was published/ })
    await t.rejects(publisher.position(), UNAVAILABLE)
    await server.run()
    await until(() => publish().catch(() => null))
    t.equal(await publisher.position(), (await publish().then(() => publisher.position())).replace(/\w+$/, seq => (parseInt(seq, 36) - 1).toString(36)))
  })

  t.test('a publisher that is closed while it waits for Redis does not wait longer', async t => {
    const server = await RedisServer.prepare()
    t.teardown(() => server.stop())
    const publisher = publisherAt(t, server, { startTimeoutMs: 60_000 })
    const publishing = t.rejects(publisher.broadcastEvent({ data: 'x' }), { code: 'SSE_ERR_CLOSED' })
    await publisher.close()
    await publishing
  })

  t.test('a node that could not reach Redis can be opened again', async t => {
    const server = await RedisServer.prepare()
    t.teardown(() => server.stop())
    const node = new SSEManager({ broker: brokerAt(server, { startTimeoutMs: 300 }) })
    t.teardown(() => node.close())
    await t.rejects(node.open(), UNAVAILABLE)
    await server.run()
    await until(() => node.open().then(() => true, () => false))
    t.match(await node.broadcastEvent({ data: 'x' }), { id: /\.1$/ })
  })

  t.test('a broker is opened once', async t => {
    const server = await start(t)
    const broker = brokerAt(server)
    const publisher = createPublisher({ broker })
    t.teardown(() => publisher.close())
    await publisher.open()
    await t.rejects(new SSEManager({ broker }).open(), { code: 'SSE_ERR_INVALID_OPTION', message: /already open/ })
  })

  t.test('a publisher that is the first to reach a wiped Redis: clients have a gap, and no stream ends', async t => {
    const server = await start(t)
    const { join } = await serve(t, { broker: brokerAt(server) })
    const publisher = publisherAt(t, server)
    const before = await publisher.broadcastEvent({ event: 'n', data: 'before' }, { subscriptionIds: ['topic'] })
    const { stream } = await join('ada', ['topic'])
    await server.ask('FLUSHALL')
    const after = await publisher.broadcastEvent({ event: 'n', data: 'after' }, { subscriptionIds: ['topic'] })
    t.not(after.id!.split('.')[0], before.id!.split('.')[0])
    await stream.next('n')
    t.same(stream.events.map(({ event }) => event).filter(event => /^(?:n|sse:gap|sse:close)$/.test(event)), ['sse:gap', 'n'])
    t.equal(stream.named('n')[0]!.id, after.id)
  })

  t.test('the run of a worker is read on two web nodes; the worker is killed', async t => {
    const server = await start(t)
    const [one, other] = [await serveRuns(t, { broker: brokerAt(server) }), await serveRuns(t, { broker: brokerAt(server) })]
    const process = await startWorker(t, server, 'sse', 'produce', 1_000_000)
    const streams = [await one.read('job'), await other.read('job')]
    for (const stream of streams) await stream.collect(20)
    t.equal((await one.begin('job', () => ['other'])).started, false, 'it is running')
    await process.kill()
    for (const stream of streams) {
      await stream.ended
      t.same(endOf(stream), ['lost'])
      t.same(tokens(stream), numbers(tokens(stream).length), 'without a hole')
    }
    t.same(streams[0]!.events, streams[1]!.events)
  })

  t.test('a worker that is terminated ends its run at once, and then itself', async t => {
    const server = await start(t)
    const { read } = await serveRuns(t, { broker: brokerAt(server) })
    const process = await startWorker(t, server, 'sse', 'produce', 1_000_000)
    const stream = await read('job')
    await stream.collect(20)
    t.equal(await process.stop(), 0)
    await stream.ended
    t.same(endOf(stream), ['lost'])
  })

  t.test('runs of nodes and of publishers are the same', async t => {
    const server = await start(t)
    const { app, read } = await serveRuns(t, { broker: brokerAt(server) })
    const publisher = publisherAt(t, server, {}, { runs: { max: 2 } })
    const owner = { ownerId: 'ada' }
    const source = ({ signal }: { signal: AbortSignal }) => (async function * () {
      yield '1'
      await new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
    })()
    const { run } = await publisher.startRun('stopped', source, owner)
    const stream = await read('stopped', owner)
    await stream.collect(1)
    t.equal(await app.sse.stopRun('stopped', owner), true)
    t.match(await run.finished, { status: 'stopped', events: 1 })
    await stream.ended
    t.same(endOf(stream), ['stopped'])

    await publisher.startRun('done', () => ['1', '2'], owner)
    await until(async () => (await app.sse.getRun('done', owner))?.status === 'done')
    await app.sse.startRun('own', source, owner)
    t.same((await publisher.listRuns(owner)).map(({ id, status }) => [id, status]), [['own', 'running'], ['done', 'done'], ['stopped', 'stopped']])
    t.equal(await publisher.stopRun('own', owner), true)
    t.equal((await app.sse.getRun('own', owner))?.status, 'stopped')
    t.equal(await publisher.getRun('none', owner), null)

    for (const id of ['a', 'b']) await publisher.startRun(id, source, owner)
    await t.rejects(publisher.startRun('c', source, owner), { code: 'SSE_ERR_TOO_MANY_RUNS' })
  })
})
