import { createClient } from '@redis/client'
import { channel } from 'node:diagnostics_channel'
import { getEventListeners, once } from 'node:events'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { connector, isErrorReply, type Connection } from '../../lib/log/redis/client.js'
import { slowRedis } from '../../lib/testing/index.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { turns, until } from '../helpers/wait.js'

// Connections to Redis by the client libraries: each behaves alike.

const CLIENTS: Record<string, (url: string) => unknown> = { ioredis: url => new Redis(url, { lazyConnect: true }), 'node-redis': url => createClient({ url }), 'a URL': url => url }
const UNAVAILABLE = { code: 'SSE_ERR_BROKER_UNAVAILABLE' }

async function connect (t: Test, client: unknown, { database = undefined as number | undefined, timeoutMs = 20_000, onLost = (_error: Error) => {}, signal = new AbortController().signal } = {}): Promise<Connection> {
  const connection = await connector(client, database, timeoutMs)(onLost, signal)
  t.teardown(() => connection.destroy())
  return connection
}

t.test('what is not a client of a single server is refused', async t => {
  const methods = { call () {}, sendCommand () {}, duplicate () {}, select () {} }
  const { call, sendCommand, duplicate, select } = methods
  for (const client of [undefined, null, 7, {}, call, { call, duplicate }, { call, duplicate, isCluster: true }, { call, isCluster: false }, { duplicate, isCluster: false }, { call: 'x', duplicate, isCluster: false },
    { sendCommand, duplicate, select }, { sendCommand, duplicate, isReady: true }, { sendCommand, select, isReady: true }, { duplicate, select, isReady: true }]) {
    t.throws(() => connector(client, undefined, 1), { code: 'SSE_ERR_INVALID_OPTION', message: /"broker.client"/ })
  }
  for (const url of ['localhost', 'http://a', 'redis:/a', ' redis://a', 'xredis://a', 'redissx://a']) t.throws(() => connector(url, undefined, 1), { code: 'SSE_ERR_INVALID_OPTION', message: /begins with redis:\/\// }, url)
  for (const client of ['redis://a', 'rediss://a', 'unix:///a', { call, duplicate, isCluster: false }, { sendCommand, duplicate, select, isReady: false }]) t.type(connector(client, undefined, 1), 'function')
})

t.test('the address of the server is known without its credentials', async t => {
  const lazyConnect = true
  const cases: [client: unknown, peer: object | undefined][] = [
    ['redis://somebody:hunter2@redis.example:7000/2', { address: 'redis.example', port: 7000 }],
    ['redis://redis.example', { address: 'redis.example', port: 6379 }],
    ['unix:///run/redis.sock', { address: '/run/redis.sock' }],
    ['redis://a:b:c', undefined],
    [new Redis({ host: 'redis.example', port: 7000, password: 'hunter2', lazyConnect }), { address: 'redis.example', port: 7000 }],
    [new Redis('/run/redis.sock', { lazyConnect }), { address: '/run/redis.sock' }],
    [new Redis({ sentinels: [{ host: 'redis.example', port: 7000 }], name: 'main', lazyConnect }), undefined],
    [createClient({ url: 'redis://somebody:hunter2@redis.example:7000' }), { address: 'redis.example', port: 7000 }],
    [createClient({ url: 'unix:///run/redis.sock' }), { address: '/run/redis.sock' }],
    [createClient(), { address: 'localhost', port: 6379 }]
  ]
  for (const [client, peer] of cases) t.strictSame(connector(client, undefined, 1_000).peer, peer)
})

t.test('an error reply begins with a code', async t => {
  for (const message of ['ERR wrong', 'WRONGTYPE Operation', 'OOM x']) t.ok(isErrorReply(new Error(message)))
  for (const other of [new Error('ERR'), new Error('E x'), new Error('Error x'), new Error('the ERR x'), new Error('connect ECONNREFUSED 127.0.0.1'), 'ERR wrong', null, { message: 'ERR wrong' }]) t.notOk(isErrorReply(other))
})

t.test('a server', { skip: withoutRedis }, async t => {
  const server = await RedisServer.prepare()
  const path = join(server.directory, 'redis.sock')
  t.teardown(() => server.stop())
  await server.run('--unixsocket', path)
  const named = async () => (await server.ask('CLIENT', 'LIST')).match(/name=fastify-sse-manager/g)?.length ?? 0

  for (const [name, client] of Object.entries(CLIENTS)) {
    await t.test(name, async t => {
      const lost: Error[] = []
      const { signal } = new AbortController()
      const connection = await connect(t, client(server.url), { signal, onLost: error => { lost.push(error) } })
      t.equal(getEventListeners(signal, 'abort').length, 0, 'a connection that was made does not listen for the end of its attempt')
      t.equal(channel('net.client.socket').hasSubscribers, false, 'nor for sockets of others')
      t.equal(await named(), 1)
      t.equal(await connection.send(['SET', 'list', '7'], 20_000), 'OK')
      const refused = await connection.send(['RPUSH', 'list', 'secret'], 20_000).catch((error: unknown) => error)
      t.ok(isErrorReply(refused))
      t.notMatch(JSON.stringify({ ...refused as Error }), 'secret')
      t.equal(await connection.send(['GET', 'list'], 20_000), '7', 'an error reply ends nothing')
      t.strictSame(lost, [])

      // A command that Redis does not answer, and a connection that it closes.
      await t.rejects(connection.send(['BLPOP', 'nothing', '0'], 50), { ...UNAVAILABLE, message: /did not answer within 50 ms/ })
      await server.ask('CLIENT', 'KILL', 'TYPE', 'normal')
      await until(() => lost.length > 0)
      await t.rejects(connection.send(['PING'], 20_000))
      connection.destroy()
      await turns(3)
      t.ok(lost.every(error => error instanceof Error))
      t.equal(await named(), 0, 'it does not connect again')
    })

    await t.test(`databases, ${name}`, async t => {
      for (const [url, database, expected] of [[server.url, undefined, 0], [`${server.url}/3`, undefined, 3], [`${server.url}/3`, 5, 5], [`${server.url}/3`, 0, 0]] as const) {
        const connection = await connect(t, client(url), { ...(database !== undefined && { database }) })
        const key = `${name} ${url} ${database}`
        await connection.send(['SET', key, 'x'], 20_000)
        const other = await connect(t, server.url, { database: expected })
        t.equal(await other.send(['GET', key], 20_000), 'x', key)
      }
      await t.rejects(connect(t, client(`${server.url}/99`)), { message: /out of range/ })
    })

    await t.test(`the time for a reply starts again while bytes of it arrive, ${name}`, async t => {
      const proxy = await slowRedis({ port: server.port, test: t })
      await server.ask('SET', 'large', 'x'.repeat(300_000))
      const connection = await connect(t, client(proxy.url))
      proxy.bytesPerSecond = 200_000
      t.equal(String(await connection.send(['GET', 'large'], 700)).length, 300_000)
      proxy.hold()
      await t.rejects(connection.send(['PING'], 100), UNAVAILABLE)
    })
  }

  await t.test('a Unix socket', async t => {
    for (const client of [`unix://${path}`, new Redis(path, { lazyConnect: true }), createClient({ socket: { path, tls: false } })]) t.equal(await (await connect(t, client)).send(['PING'], 20_000), 'PONG')
  })
})

t.test('an attempt', async t => {
  const sockets = new Set<Socket>()
  const silent = createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {}).on('close', () => sockets.delete(socket)).resume()
  }).listen(0, '127.0.0.1')
  await once(silent, 'listening')
  t.teardown(() => silent.close())
  for (const [name, client] of Object.entries(CLIENTS)) {
    const url = `redis://127.0.0.1:${(silent.address() as AddressInfo).port}`
    await t.rejects(connect(t, client(url), { timeoutMs: 100 }), `${name}: ends at a server that says nothing`)
    await until(() => sockets.size === 0, undefined, 'its socket is closed')
    const stop = new AbortController()
    const attempt = connect(t, client(url), { signal: stop.signal })
    attempt.catch(() => {})
    await until(() => sockets.size > 0)
    t.equal(getEventListeners(stop.signal, 'abort').length, 1)
    stop.abort()
    await t.rejects(attempt, `${name}: ends when it is aborted`)
    await until(() => sockets.size === 0)
    t.equal(getEventListeners(stop.signal, 'abort').length, 0)
    for (const turnsBefore of [0, 1]) {
      const stop = new AbortController()
      const attempt = connect(t, client(url), { signal: stop.signal })
      attempt.catch(() => {})
      await turns(turnsBefore)
      stop.abort()
      let ended = false
      attempt.catch(() => { ended = true })
      await until(() => ended, 10_000, `${name}: ends also before there is a connection, ${turnsBefore}`)
      await until(() => sockets.size === 0, undefined, 'and leaves none behind')
    }
    t.equal(channel('net.client.socket').hasSubscribers, false)
  }
})
