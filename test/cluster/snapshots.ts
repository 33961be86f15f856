import t from 'tap'
import { slowRedis } from '../../lib/testing/index.js'
import { payloads } from '../helpers/app.js'
import { node, nodes, prefixes, server } from '../helpers/cluster.js'
import { counted, gated } from '../helpers/loads.js'
import { withoutRedis } from '../helpers/redis.js'
import { until } from '../helpers/wait.js'

t.test('snapshots on a log of many nodes', { skip: withoutRedis }, async t => {
  await t.test('a state is loaded on one node, and changed on the other', async t => {
    const [a, b] = await nodes(t, 2) as [Awaited<ReturnType<typeof node>>, Awaited<ReturnType<typeof node>>]
    let version = 0
    const change = () => a.app.sse.broadcastEvent({ event: 'change', data: ++version }, { subscriptionIds: ['a'] })
    const { snapshot, questions, release } = gated(() => ({ event: 'state', data: version }))
    await change()
    await until(() => b.app.sse.stats().messages >= 1)
    const { stream, connection } = await b.join('ada', ['a'], { snapshot })
    await until(() => questions.length === 1)
    await change()
    await change()
    await release()
    await change()
    await stream.until(() => payloads(stream, 'change').includes(4))
    const [state, ...changes] = stream.events.map(({ json }) => json as number)
    t.ok(state! >= 1 && state! <= 3)
    t.strictSame(changes, [2, 3, 4], 'all that follows the position')

    await a.app.sse.addSubscription(connection.clientId, 'b')
    await until(() => questions.length === 2)
    t.match(questions[1], { reason: 'added', subscriptions: ['b'] })
    await stream.until(() => stream.lastEventId.endsWith('!0'))
    await stream.cut()
    await release()
    const again = counted()
    const back = await a.join('ada', ['a', 'b'], { snapshot: again.snapshot, cursor: stream.lastEventId })
    await back.stream.next('state')
    t.strictSame(again.asked(), ['added a b'], 'the other node knows that a state is missing')
    t.equal(back.connection.resumed, true)
  })

  await t.test('a client that is ahead of its node', async t => {
    prefixes.last++
    const proxy = await slowRedis({ port: server!.port, test: t })
    const a = await node(t, 'a')
    const b = await node(t, 'b', { redis: proxy })
    const say = (data: number) => a.app.sse.broadcastEvent({ event: 'x', data }, { subscriptionIds: ['a', 'b'] })
    await say(1)
    await until(() => b.app.sse.stats().messages >= 1)
    proxy.hold('XREAD')
    await say(2)
    const at = a.app.sse.position()
    await say(3)

    const page = counted()
    const rendered = await b.join('ada', ['a'], { snapshot: page.snapshot, cursor: at })
    const fresh = counted()
    const returning = await b.join('bob', ['a', 'b'], { snapshot: fresh.snapshot, cursor: `${at}!0` })
    t.equal(rendered.connection.resumed, null, 'not known yet')
    t.equal(returning.stream.lastEventId, `${at}!0`, 'the cursor still says that the state is missing')
    const here = counted()
    const first = await b.join('eve', ['a'], { snapshot: here.snapshot })
    await first.stream.next('state')
    t.equal(first.stream.lastEventId, b.app.sse.position(), 'the position of this node, which is late: what follows it comes later')
    t.strictSame([...page.asked(), ...fresh.asked()], [])

    proxy.release()
    await rendered.stream.until(() => rendered.stream.named('x').length === 1)
    t.strictSame(payloads(rendered.stream, 'x'), [3])
    t.equal(rendered.connection.resumed, true)
    t.strictSame(page.asked(), [])
    await returning.stream.next('state')
    await say(4)
    await returning.stream.until(() => payloads(returning.stream, 'x').includes(4))
    t.strictSame(payloads(returning.stream, 'x'), [3, 4])
    t.strictSame(fresh.asked(), ['added a b'])
    await first.stream.until(() => payloads(first.stream, 'x').includes(4))
    t.strictSame(payloads(first.stream, 'x'), [2, 3, 4])
    t.strictSame([rendered, returning, first].flatMap(({ stream }) => stream.named('sse:gap')), [])
  })
})
