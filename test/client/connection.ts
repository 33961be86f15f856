import t, { type Test } from 'tap'
import { createClient, SSEClientError, type ClientOptions, type ClientState, type SSEClient } from '../../lib/client/index.js'
import { serve, type Service } from '../helpers/app.js'
import { until } from '../helpers/wait.js'

/** A client that is closed when the test ends, and the states that it has had. */
function connect (t: Test, { url }: Service, options: ClientOptions = {}, path = '/sse?user=ada'): { client: SSEClient, states: ClientState[] } {
  const client = createClient(`${url}${path}`, options)
  t.teardown(() => client.close())
  const states: ClientState[] = [client.state]
  client.onState(state => { states.push(state) })
  return { client, states }
}

const isOpen = (client: SSEClient) => until(() => client.state.name === 'open', undefined, 'the client is open')

t.test('events reach the listeners of their name, of their resource, and of notifications', async t => {
  const service = await serve(t)
  const { app: { sse } } = service
  const { client, states } = connect(t, service)
  const seen: unknown[] = []
  client.on('chat', (data, { event, text, id }) => { seen.push([data, event, text, id === client.lastEventId]) })
  client.onData('orders', data => { seen.push(['orders', data]) })
  client.onNotification(({ title }) => { seen.push(title) })
  client.on('last', data => { seen.push(data) })
  const remove = client.on('chat', () => { t.fail('a removed listener') })
  remove()
  await isOpen(client)
  t.same(states, [{ name: 'connecting' }, { name: 'open' }])
  await sse.broadcastEvent({ event: 'chat', data: { text: 'hello' } })
  await sse.broadcastData('orders', [1])
  await sse.broadcastData('others', [1])
  await sse.broadcastNotification({ title: 'Hey', message: 'you' })
  await sse.broadcastEvent({ event: 'last', data: 'no JSON' })
  await until(() => seen.includes('no JSON'))
  t.same(seen, [[{ text: 'hello' }, 'chat', '{"text":"hello"}', true], ['orders', [1]], 'Hey', 'no JSON'])
})

t.test('close() ends the stream, and nothing is called afterwards', async t => {
  const service = await serve(t)
  const { client, states } = connect(t, service)
  let count = 0
  client.on('x', () => {
    count++
    client.close()
  })
  await isOpen(client)
  await Promise.all([1, 2, 3].map(data => service.app.sse.broadcastEvent({ event: 'x', data })))
  await until(() => service.app.sse.connectionCount === 0)
  t.equal(count, 1)
  t.same(states.at(-1), { name: 'closed', reason: 'client' })
})

t.test('wrong options', async t => {
  const wrong = (url: string, options: object, message: RegExp) => t.throws(() => createClient(url, options), { code: 'SSE_ERR_CLIENT_OPTION', message })
  wrong('/sse', {}, /\/sse is not a URL/)
  wrong('http://localhost', { header: {} }, /no option "header"/)
  wrong('http://localhost', { timeoutMs: 0 }, /timeoutMs must be/)
  t.ok(new SSEClientError('SSE_ERR_CLIENT_GAP') instanceof Error)
})
