import { once } from 'node:events'
import { connect, createServer, Socket, type AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { slowRedis, type SlowRedisOptions } from '../../lib/testing/index.js'
import { holdTimers } from '../helpers/held-timers.js'
import { turns, until } from '../helpers/wait.js'

// A proxy between clients and a server that answers each command with itself.

async function setUp (t: Test, options: SlowRedisOptions = {}) {
  let seen = ''
  const sockets: Socket[] = []
  const server = createServer(socket => {
    sockets.push(socket.on('error', () => {}).on('data', bytes => {
      seen += bytes
      socket.write(bytes)
    }))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const proxy = await slowRedis({ port: (server.address() as AddressInfo).port, test: t, ...options })
  const open = async () => {
    const socket = connect(proxy.port, '127.0.0.1')
    t.teardown(() => socket.destroy())
    let heard = ''
    socket.on('error', () => {}).setEncoding('latin1').on('data', part => { heard += part })
    const count = sockets.length
    await until(() => sockets.length > count)
    return {
      socket,
      /** The server's end. */
      server: sockets.at(-1)!,
      say: (text: string) => { socket.write(text) },
      hears: (wanted: string) => until(() => heard === wanted, 10_000, `${wanted.slice(0, 20)}, not ${heard.slice(0, 20)}`),
      get heard () { return heard }
    }
  }
  return { proxy, open, sees: (wanted: string) => until(() => seen === wanted, 10_000, wanted.slice(0, 20)), get seen () { return seen } }
}

/** Turns in which everything that is on its way arrives. */
const settled = () => turns(30)

t.test('delayMs delays each chunk in each direction; what follows does not overtake it', async t => {
  const node = await setUp(t)
  const { proxy, open, sees } = node
  const one = await open()
  const timers = holdTimers(t)
  one.say('a')
  await one.hears('a')
  t.strictSame([timers.durations, node.seen], [[], 'a'], 'none: at once')
  proxy.delayMs = 60
  one.say('b')
  await until(() => timers.count === 1)
  timers.now += 59
  timers.fire()
  t.strictSame([timers.durations, node.seen], [[60, 1], 'a'], 'not before it is due')
  timers.now += 1
  timers.fire()
  await sees('ab')
  await until(() => timers.count === 1)
  t.strictSame([timers.durations, one.heard], [[60, 1, 60], 'a'])
  proxy.delayMs = 0
  one.say('c')
  await sees('abc')
  await settled()
  t.equal(one.heard, 'a')
  timers.now += 60
  timers.fire()
  await one.hears('abc')
  one.say('d')
  await one.hears('abcd')
  t.strictSame([timers.count, timers.durations.length], [0, 3])
})

t.test('bytesPerSecond limits the replies, for each connection', async t => {
  const { proxy, open, sees } = await setUp(t, { bytesPerSecond: 1_000 })
  const [one, other] = [await open(), await open()]
  const timers = holdTimers(t)
  one.say('x'.repeat(100))
  await until(() => timers.count === 1)
  t.strictSame(timers.durations, [100], 'of the reply; the command was not limited')
  one.say('y'.repeat(50))
  await sees('x'.repeat(100) + 'y'.repeat(50))
  await settled()
  other.say('z'.repeat(20))
  await until(() => timers.count === 2)
  timers.now += 100
  timers.fire()
  await one.hears('x'.repeat(100))
  t.strictSame(timers.durations, [100, 20, 50], 'another connection has its own rate')
  timers.fire()
  await other.hears('z'.repeat(20))
  timers.now += 50
  timers.fire()
  await one.hears('x'.repeat(100) + 'y'.repeat(50))

  timers.now += 1_000
  proxy.delayMs = 30
  one.server.write('p'.repeat(10))
  await until(() => timers.count === 1)
  one.server.write('q'.repeat(10))
  await settled()
  t.equal(timers.durations.at(-1), 40, 'delay and rate')
  timers.now += 40
  timers.fire()
  t.equal(timers.durations.at(-1), 10, 'one delay for what comes together')
})

t.test('a connection queues 64 KB, and then does not read on until less is queued', async t => {
  const { proxy, open } = await setUp(t)
  const one = await open()
  const paused: Socket[] = []
  const { pause } = Socket.prototype
  t.intercept(Socket.prototype, 'pause', { value (this: Socket) { paused.push(this); return pause.call(this) }, configurable: true })
  for (const round of [1, 2]) {
    proxy.hold()
    one.server.write(Buffer.alloc(65_536, 'x'))
    await settled()
    t.equal(paused.length, round - 1)
    one.server.write('y')
    await until(() => paused.length === round)
    one.server.write(Buffer.alloc(1 << 20, 'z'))
    await settled()
    t.equal(paused.length, round, 'it does not read on')
    proxy.release()
    await until(() => one.heard.length === round * (65_536 + 1 + (1 << 20)))
  }
})

t.test('hold() delays replies, to all or to some commands, until release() or heal()', async t => {
  const { proxy, open, sees } = await setUp(t)
  const [one, other] = [await open(), await open()]
  one.say('GET x;')
  await one.hears('GET x;')
  other.say('SET;')
  await other.hears('SET;')
  proxy.hold('x')
  one.server.write('late;')
  other.say('GET y;')
  await other.hears('SET;GET y;')
  t.equal(one.heard, 'GET x;', 'a reply to a command before it')
  other.say('GET x;')
  await sees('GET x;SET;GET y;GET x;')
  const later = await open()
  later.say('later;')
  await later.hears('later;')
  t.equal(other.heard, 'SET;GET y;')
  proxy.release()
  await Promise.all([one.hears('GET x;late;'), other.hears('SET;GET y;GET x;')])
  other.say('GET x;')
  await other.hears('SET;GET y;GET x;GET x;')

  proxy.hold()
  const held = await open()
  for (const connection of [one, held]) connection.say('h')
  await settled()
  t.strictSame([one.heard, held.heard], ['GET x;late;', ''], 'new connections too')
  proxy.heal()
  await Promise.all([one.hears('GET x;late;h'), held.hears('h')])
  const free = await open()
  free.say('f')
  await free.hears('f')
})

t.test('loseReply() drops one reply, and closes its connection', async t => {
  const { proxy, open, sees } = await setUp(t)
  const [one, other] = [await open(), await open()]
  let resolved = false
  const lost = proxy.loseReply('y').then(() => { resolved = true })
  other.say('x')
  await other.hears('x')
  t.notOk(resolved)
  one.say('[y]')
  await Promise.all([lost, once(one.socket, 'close')])
  t.equal(one.heard, '')
  other.say('y')
  await other.hears('xy')
  await sees('x[y]y')
})

t.test('drop(): nothing arrives, connections stay open; heal() closes those that have lost bytes', async t => {
  for (const what of ['commands', 'replies', 'both', undefined] as const) {
    const { proxy, open, sees } = await setUp(t)
    const [one, idle, answered] = [await open(), await open(), await open()]
    proxy.drop(what)
    one.say('z')
    answered.server.write('reply')
    if (what === 'replies') await sees('z')
    if (what === 'commands') await answered.hears('reply')
    await settled()
    t.strictSame([one.heard, one.socket.destroyed, answered.socket.destroyed], ['', false, false])
    if (what !== 'commands') t.equal(answered.heard, '')
    const closed = once(one.socket, 'close')
    proxy.heal()
    await closed
    if (what !== 'commands') await until(() => answered.socket.destroyed)
    idle.say('i')
    await idle.hears('i')
    t.notOk(idle.socket.destroyed)
    if (what === 'commands') t.notOk(answered.socket.destroyed)
    await sees(what === 'replies' ? 'zi' : 'i')
  }
})

t.test('cut() closes both sides and refuses connections until heal()', async t => {
  const { proxy, open } = await setUp(t)
  const one = await open()
  const closed = [once(one.socket, 'close'), once(one.server, 'close')]
  proxy.hold()
  proxy.cut()
  await Promise.all(closed)
  const refused = connect(proxy.port, '127.0.0.1').on('error', () => {})
  await once(refused, 'close')
  proxy.heal()
  const again = await open()
  again.say('again')
  await again.hears('again')
})

t.test('an end of either side closes the other; the proxy keeps no process alive, and can be closed twice', async t => {
  const { proxy, open } = await setUp(t)
  const handles = () => process.getActiveResourcesInfo().filter(kind => kind.startsWith('TCP')).length
  const [one, other] = [await open(), await open()]
  one.socket.destroy()
  await until(() => one.server.destroyed)
  other.server.destroy()
  await until(() => other.socket.destroyed)
  const before = handles()
  const last = await open()
  await until(() => handles() <= before + 2)
  t.equal(handles(), before + 2, 'the client and the server of the test')
  const { port } = proxy
  t.equal(proxy.url, `redis://127.0.0.1:${port}`)
  await proxy.close()
  await until(() => last.socket.destroyed && last.server.destroyed)
  await proxy.close()
  const closed = connect(port, '127.0.0.1').on('error', () => {})
  await until(() => closed.destroyed)
})
