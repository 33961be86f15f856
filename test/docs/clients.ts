import { EventSource } from 'undici'
import ssePlugin from '../../lib/index.js'
import { listen } from '../helpers/app.js'
import { bare, run, visit, type Drivers } from '../helpers/samples.js'
import { until } from '../helpers/wait.js'

/** Of the samples that run in a browser: docs/guides/resume-and-gaps.md, docs/guides/sources.md, docs/recipes/who-is-online.md. */
export const DRIVERS: Drivers = {
  async 'gap-client' (t) {
    const app = bare(t)
    await app.register(ssePlugin, { path: '/orders', retryMs: 100, history: { maxEvents: 1 } })
    const url = await listen(app)
    const changes: unknown[] = []
    let reloads = 0
    const globals = { EventSource, applyChange: (change: unknown) => { changes.push(change) }, reloadState: () => { reloads++ } }
    const { source, printed } = await run(t, globals, ['source'], text => text.replace("'/orders'", JSON.stringify(`${url}/orders`)))
    t.teardown(() => source.close())
    await until(() => app.sse.connectionCount === 1)
    await app.sse.broadcastData('orders', 1)
    await until(() => changes.length === 1)
    // The client is away while more is published than the history keeps.
    const [connection] = app.sse.connections()
    connection!.close('max-age')
    for (const n of [2, 3, 4]) await app.sse.broadcastData('orders', n)
    await until(() => reloads === 1)
    t.same(printed, [['Events were lost:', 'trimmed']])
    await app.sse.broadcastData('orders', 5)
    await until(() => changes.length === 2)
    t.same(changes, [{ resource: 'orders', data: 1 }, { resource: 'orders', data: 5 }])
    app.sse.connections().next().value!.close('kicked')
    await until(() => source.readyState === EventSource.CLOSED, undefined, 'it does not reconnect')
  },

  async 'token-client' (t) {
    const app = bare(t)
    await app.register(ssePlugin)
    app.post<{ Body: { prompt: string } }>('/tokens', { sse: true }, (request, reply) =>
      reply.sse(async function * () {
        for (const token of request.body.prompt.split(' ')) yield { event: 'token', data: { token } }
        if (request.body.prompt === 'cut off') throw new Error('The model has failed')
        yield { event: 'done', data: {} }
      }))
    const url = await listen(app)
    const { fetch } = globalThis
    let path = '/tokens'
    const { ask } = await run(t, { fetch: (_path: string, init: RequestInit) => fetch(url + path, init) }, ['ask'])
    const tokens: string[] = []
    const onToken = (token: string) => { tokens.push(token) }
    t.equal(await ask('a b c', onToken), true)
    t.same(tokens, ['a', 'b', 'c'])
    t.equal(await ask('cut off', onToken), false, 'the answer is not complete')
    path = '/nothing'
    await t.rejects(ask('a b c', onToken), { message: 'Refused with status 404' })
  },

  async 'online-list' (t) {
    const app = bare(t)
    await app.register(ssePlugin, { presenceEvents: { topics: ['room:*'], lingerMs: 50 }, retryMs: 100, authHandler: ({ query }) => query['user'] as string | undefined ?? null })
    let sendList = async () => {}
    app.get<{ Params: { room: string } }>('/rooms/:room', { sse: true }, async (request, reply) => {
      const topic = `room:${request.params.room}`
      const connection = await reply.sse({ subscriptions: [topic] })
      const send = async () => { connection.sendData('present', (await app.sse.presence(topic)).users) }
      if (connection.userId === 'ada') sendList = send
      await send()
    })
    const url = await listen(app)
    const { watchRoom } = await run(t, { EventSource }, ['watchRoom'], text => text.replaceAll('`/rooms', `\`${url}/rooms`))
    let shown = ''
    const source = watchRoom('1?user=ada', (users: string[]) => { shown = [...users].sort().join() })
    t.teardown(() => source.close())
    await until(() => shown === 'ada')
    const grace = [await visit(t, `${url}/rooms/1?user=grace`), await visit(t, `${url}/rooms/1?user=grace`)]
    await until(() => shown === 'ada,grace')
    for (const tab of grace) await tab.close()
    await until(() => shown === 'ada')
    // Whoever came while the page was away is in the list that it receives when it is back.
    app.sse.getConnectionsByUser('ada')[0]!.close('max-age')
    await visit(t, `${url}/rooms/1?user=linda`)
    await until(() => shown === 'ada,linda')
    // The announcement that somebody has left is lost: the next list repairs it.
    const lost = ({ userId }: { userId: string }, name: string) => source.dispatchEvent(new MessageEvent(name, { data: JSON.stringify({ subscriptionId: 'room:1', userId }) }))
    await sendList()
    lost({ userId: 'gone' }, 'sse:join')
    t.equal(shown, 'ada,gone,linda')
    await sendList()
    await sendList()
    await until(() => shown === 'ada,linda')
    app.sse.getConnectionsByUser('ada')[0]!.close('kicked')
    await until(() => source.readyState === EventSource.CLOSED, undefined, 'it does not reconnect')
  }
}
