import t, { type Test } from 'tap'
import { EventPriority } from '../../lib/index.js'
import { formatCursor, formatLanes, parseCursor } from '../../lib/log/cursor.js'
import { isApplicationEvent, payloads, type Joined, type Service } from '../helpers/app.js'
import { node, prefixes, server, type ClusterOptions } from '../helpers/cluster.js'
import { slowRedis, type SlowRedis } from '../../lib/testing/index.js'
import { withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

/** Nodes `a` and `b` on a log of their own; what Redis tells `b` can be held back. */
async function lateNode (t: Test, options: ClusterOptions = {}): Promise<{ a: Service, b: Service, proxy: SlowRedis }> {
  prefixes.last++
  const proxy = await slowRedis({ port: server!.port, test: t })
  const a = await node(t, 'a', options)
  return { a, b: await node(t, 'b', { ...options, redis: proxy }), proxy }
}

t.test('a node that is late', { skip: withoutRedis }, async t => {
  const said = ({ stream }: Joined) => stream.events.filter(isApplicationEvent).map(({ event, data }) => event === 'message' ? data : event)

  t.test('a client that has seen more waits for the node: no gap, nothing twice, and what is sent from this node at once', async t => {
    const { a, b, proxy } = await lateNode(t, { keepAliveIntervalMs: 50, maxConcurrentReplays: 1 })
    const say = (data: string, options = {}) => a.app.sse.broadcastEvent({ data }, options)
    const first = await a.join()
    await say('0')
    const older = (await say('1')).id!
    await until(() => b.app.sse.stats().messages >= 2)
    proxy.hold('XREAD')
    await say('2')
    await say('passing', { ephemeral: true })
    await say('3', { subscriptionIds: ['later'] })
    await say('4')
    await until(() => said(first).includes('4'))
    await first.stream.close()
    const cursor = first.stream.lastEventId

    const waiting = await Promise.all(Array.from({ length: 20 }, () => b.join('ada', [], { cursor })))
    const back = waiting[0]!
    t.equal(back.stream.lastEventId, cursor, 'its own place')
    t.equal(back.connection.stats().lagging, true)
    await until(() => back.stream.comments.filter(comment => comment === 'keep-alive').length >= 2)
    back.connection.sendEvent({ event: 'direct', data: 1 })
    await b.app.sse.broadcastEvent({ event: 'local', data: 1 }, { local: true })
    await b.app.sse.addSubscription(back.connection.clientId, 'later')
    await until(() => said(back).length === 2)
    await say('5')
    const behind = await b.join('ada', [], { cursor: formatCursor(parseCursor(older)!.epoch, parseCursor(older)!.lanes[0]! - 1) })
    await until(() => said(behind).includes('1'))

    proxy.release()
    await say('6', { subscriptionIds: ['later'] })
    await say('7', { ephemeral: true })
    for (const each of waiting) await until(() => said(each).includes('7'))
    t.strictSame(said(back), ['direct', 'local', '5', '6', '7'])
    for (const each of waiting.slice(1)) t.strictSame(said(each), ['local', '5', '7'])
    t.strictSame([...waiting, behind].flatMap(({ stream }) => stream.named('sse:gap')), [])
    await until(() => b.app.sse.stats().lagging === 0)
  })

  t.test('each lane may be ahead by itself: what another lane has not had comes, once', async t => {
    const { a, b, proxy } = await lateNode(t)
    const { epoch, lanes: [start] } = parseCursor((await a.app.sse.broadcastEvent({ data: 'start' })).id!)!
    await until(() => b.app.sse.stats().messages >= 1)
    proxy.hold('XREAD')
    for (const [data, priority] of [['1', EventPriority.NORMAL], ['2', EventPriority.CRITICAL], ['3', EventPriority.LOW], ['4', EventPriority.HIGH], ['5', EventPriority.CRITICAL]] as const) await a.app.sse.broadcastEvent({ data, priority })
    const back = await b.join(null, [], { cursor: formatLanes(epoch, [start!, start!, start! + 4, start! + 4]) })
    proxy.release()
    await until(() => said(back).length >= 3)
    await a.app.sse.broadcastEvent({ data: 'end', priority: EventPriority.LOW })
    await until(() => said(back).includes('end'))
    t.strictSame(said(back), ['5', '1', '3', 'end'])
    t.strictSame(back.stream.named('sse:gap'), [])
  })

  t.test('a client that is closed meanwhile keeps its place', async t => {
    const { a, b, proxy } = await lateNode(t, { ticketSecret: 'thirty-two characters of a random generator' })
    proxy.hold('XREAD')
    const cursor = (await a.app.sse.broadcastEvent({ data: '1' })).id!
    const closed = await b.join(null, [], { cursor })
    const drained = await b.open(`/sse?ticket=${a.app.sse.issueTicket({ userId: 'ada' })}&lastEventId=${cursor}`)
    closed.connection.close('kicked')
    await b.app.sse.drain()
    for (const stream of [closed.stream, drained]) {
      await stream.ended
      t.equal(stream.lastEventId, cursor)
      t.strictSame(stream.events.map(({ event }) => event), ['sse:close'])
    }
  })

  t.test('a place that the log has not reached is a gap at once, however late the node', async t => {
    const { a, b, proxy } = await lateNode(t)
    proxy.hold('XREAD')
    const { id } = await a.app.sse.broadcastEvent({ data: '1' })
    const { epoch } = parseCursor(id!)!
    const forged = await b.join(null, [], { cursor: `${epoch}.zzzz` })
    const [gap] = await forged.stream.collect(1, 'sse:gap')
    t.strictSame(JSON.parse(gap!.data!), { reason: 'unknown', lastEventId: `${epoch}.zzzz` })
    t.equal(gap!.id, `${epoch}.0`)
    proxy.release()
    await forged.stream.next('message')
    t.strictSame(said(forged), ['1'])
  })

  t.test('a node that has not heard that the log was wiped is late too, and tells one gap', async t => {
    const { a, b, proxy } = await lateNode(t)
    const { id: old } = await a.app.sse.broadcastEvent({ data: '1' })
    await until(() => b.app.sse.stats().messages >= 1)
    proxy.hold('XREAD')
    const { id: older } = await a.app.sse.broadcastEvent({ data: '2' })
    const ahead = await b.join(null, [], { cursor: older! })
    await server!.ask('FLUSHALL')
    const { id } = await a.app.sse.broadcastEvent({ data: '3' })
    t.not(parseCursor(id!)!.epoch, parseCursor(old!)!.epoch)
    const moved = await b.join(null, [], { cursor: id! })
    const other = await b.join(null, [], { cursor: `${parseCursor(old!)!.epoch}.zz` })
    proxy.release()
    for (const { stream } of [ahead, other]) t.match(JSON.parse((await stream.collect(1, 'sse:gap'))[0]!.data!), { reason: 'epoch' })
    await a.app.sse.broadcastEvent({ data: '4' })
    for (const each of [ahead, other, moved]) await until(() => said(each).includes('4'))
    t.strictSame(said(moved), ['4'])
    t.strictSame(moved.stream.named('sse:gap'), [])
    for (const { stream } of [ahead, other]) t.equal(stream.named('sse:gap').length, 1)
  })

  t.test('a node that begins without Redis lets clients that have a place wait for it', async t => {
    prefixes.last++
    const ticketSecret = 'thirty-two characters of a random generator'
    const a = await node(t, 'a', { ticketSecret })
    const { id: cursor } = await a.app.sse.broadcastEvent({ data: '1' })
    await a.app.sse.broadcastEvent({ data: '2' })
    const proxy = await slowRedis({ port: server!.port, test: t })
    proxy.hold()
    const b = await node(t, 'b', { redis: proxy, startDegraded: true, ticketSecret })
    const ticket = a.app.sse.issueTicket({ userId: 'ada' })
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 503, 'not the 401 that an EventSource takes for final')
    const back = await b.join(null, [], { cursor: cursor! })
    const stranger = await b.join(null, [], { cursor: 'zzzz.1' })
    await b.app.sse.broadcastEvent({ data: 'local' }, { local: true })
    await until(() => said(back).length === 1)
    t.strictSame([back, stranger].flatMap(({ stream }) => stream.named('sse:gap')), [])
    proxy.release()
    await until(() => said(back).includes('2'))
    t.strictSame(said(back), ['local', '2'])
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 200)
    t.strictSame(back.stream.named('sse:gap'), [])
    t.match(JSON.parse((await stranger.stream.collect(1, 'sse:gap'))[0]!.data!), { reason: 'epoch', lastEventId: 'zzzz.1' })
  })

  t.test('a used ticket stays used if the claims are lost and this node has not heard of it, and a fresh one is not spent', async t => {
    const { a, b, proxy } = await lateNode(t, { ticketSecret: 'thirty-two characters of a random generator' })
    const ticket = a.app.sse.issueTicket({ userId: 'ada' })
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 200)
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 401)
    proxy.hold('XREAD')
    await server!.ask('FLUSHALL')
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 503, 'there is no epoch yet')
    const { epoch } = parseCursor((await a.app.sse.broadcastEvent({ data: '1' })).id!)!
    t.equal((await b.open(`/sse?ticket=${ticket}`)).status, 503)
    const fresh = a.app.sse.issueTicket({ userId: 'ada' })
    t.equal((await b.open(`/sse?ticket=${fresh}`)).status, 503)
    proxy.release()
    await until(async () => parseCursor((await b.join()).stream.lastEventId!)!.epoch === epoch)
    t.equal((await b.open(`/sse?ticket=${fresh}`)).status, 200)
    t.strictSame(await Promise.all([ticket, fresh].map(async each => (await b.open(`/sse?ticket=${each}`)).status)), [401, 401])
  })

  t.test('a node that skips an epoch ends the streams of users: a command may have been in it', async t => {
    const { a, b, proxy } = await lateNode(t, { cluster: { answerTimeoutMs: 200 } })
    const [ada, nobody] = [await b.join('ada'), await b.join()]
    await until(() => a.app.sse.clusterStats().nodes.length === 2)
    proxy.hold('XREAD')
    await a.app.sse.broadcastEvent({ data: 'on its way' })
    await server!.ask('FLUSHALL')
    await a.app.sse.broadcastEvent({ data: '1' })
    await t.rejects(a.app.sse.disconnectUser('ada'), { code: 'SSE_ERR_NO_ANSWER' })
    await server!.ask('FLUSHALL')
    await a.app.sse.broadcastEvent({ data: '2' })
    proxy.release()
    await ada.stream.ended
    t.same(payloads(ada.stream, 'sse:close'), [{ reason: 'rights-unknown', reconnect: true }])
    await until(() => said(nobody).includes('2'))
    t.ok(nobody.connection.isConnected)
  })

  t.test('a node that missed a command in a lost log learns it from Redis if the node that had read it is gone', async t => {
    const { a, b, proxy } = await lateNode(t, { cluster: { answerTimeoutMs: 200 } })
    const ada = await b.join('ada')
    await until(() => a.app.sse.clusterStats().nodes.length === 2)
    proxy.hold('XREAD')
    await a.app.sse.broadcastEvent({ data: 'on its way' })
    await t.rejects(a.app.sse.disconnectUser('ada'), { code: 'SSE_ERR_NO_ANSWER' })
    await server!.ask('FLUSHALL')
    await a.app.sse.broadcastEvent({ data: '1' })
    await a.app.close()
    await server!.ask('DEL', `{cluster-${process.pid}-${prefixes.last}}:nodes`)
    proxy.release()
    await ada.stream.ended
    t.same(payloads(ada.stream, 'sse:close'), [{ reason: 'rights-unknown', reconnect: true }])
  })

  t.test('a node that begins without Redis ends the streams of users once it is reached, if a command was logged before', async t => {
    prefixes.last++
    const a = await node(t, 'a')
    const proxy = await slowRedis({ port: server!.port, test: t })
    proxy.hold()
    const b = await node(t, 'b', { redis: proxy, startDegraded: true })
    const ada = await b.join('ada')
    t.equal(await a.app.sse.disconnectUser('ada'), 0)
    proxy.release()
    await ada.stream.ended
    t.same(payloads(ada.stream, 'sse:close'), [{ reason: 'rights-unknown', reconnect: true }])
  })

  t.test('a place is told after a gap too, though its number is one that was told before', async t => {
    prefixes.last++
    const a = await node(t, 'a', { keepAliveIntervalMs: 50 })
    const { stream } = await a.join()
    const { id } = await a.app.sse.broadcastEvent({ data: '1' })
    await stream.next('message')
    await server!.ask('FLUSHALL')
    const { id: last } = await a.app.sse.broadcastEvent({ data: '1' }, { subscriptionIds: ['others'] })
    t.equal(last!.split('.')[1], id!.split('.')[1])
    await stream.next('sse:gap')
    await until(() => stream.lastEventId === last)
  })
})
