import { once } from 'node:events'
import { connect, createServer, type AddressInfo } from 'node:net'
import t from 'tap'
import { inTime } from '../../lib/util/timeout.js'

t.test('after the event loop stood still, a reply that has arrived meanwhile is in time', async t => {
  const server = createServer(socket => { socket.on('error', () => {}).end('reply') })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const socket = connect((server.address() as AddressInfo).port, '127.0.0.1')
  await once(server, 'connection')
  const reply = inTime(once(socket, 'data'), 50)
  const until = performance.now() + 200
  while (performance.now() < until);
  t.equal(String((await reply)[0]), 'reply')
  await t.rejects(inTime(new Promise(() => {}), 10), { code: 'SSE_ERR_BROKER_UNAVAILABLE' })
})
