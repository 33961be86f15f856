import fc from 'fast-check'
import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { PassThrough, type Writable } from 'node:stream'
import t, { type Test } from 'tap'
import { MemoryBudget } from '../../lib/util/memory-budget.js'
import { Chunk } from '../../lib/wire/chunk.js'
import { isTaken, Writer, type WriterOwner } from '../../lib/wire/writer.js'
import { collect } from '../helpers/heap.js'
import { RawSocket, requestText } from '../helpers/raw.js'
import { listenForTrouble } from '../helpers/trouble.js'
import { turns, until } from '../helpers/wait.js'

const FIRST = ': first\n\n'

/** A connection as its writer sees it. It writes what is given as soon as it can. */
class Owner implements WriterOwner {
  blocked = true
  readonly budget = new MemoryBudget(1 << 30)
  readonly writer: Writer
  readonly response: ServerResponse
  readonly heard: string[] = []
  /** Chunks that wait for room. */
  readonly queue: Chunk[] = []
  #writing: Chunk | null = null

  constructor (response: ServerResponse) {
    this.response = response
    this.writer = new Writer(response, this, this.budget)
  }

  open (destination: Writable = this.response, end?: () => void): this {
    this.writer.open(destination, destination === this.response ? { headers: {} } : { end: end ?? (() => destination.end()) }, new Chunk(FIRST))
    return this
  }

  write (chunk: Chunk): void {
    this.queue.push(chunk)
    this.#pump()
  }

  #pump (): void {
    while (!this.blocked) {
      if (this.writer.writeRest()) continue
      this.#writing = this.queue.shift() ?? null
      if (this.#writing === null) return
      this.writer.write(this.#writing)
    }
  }

  /** The bytes of the chunk that is written in pieces. */
  get held (): number {
    return this.writer.hasRest ? this.#writing!.bytes : 0
  }

  onDrain (): void {
    this.heard.push('drain')
    this.#pump()
  }

  onWriteError (error: unknown): void {
    this.heard.push((error as Error).message)
  }

  finish (): void {
    this.heard.push('finish')
    this.writer.release()
  }
}

/** A server whose responses are written by owners. */
async function serve (t: Test) {
  const owners: Owner[] = []
  const server = createServer((request, response) => {
    if (request.url === '/plain') response.end('plain')
    else owners.push(new Owner(response))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  // Sockets are closed by what is tested, or not at all.
  server.keepAliveTimeout = 0
  t.teardown(() => { server.close() })
  const connect = async () => {
    const socket = new RawSocket(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, {})
    t.teardown(() => socket.close())
    const count = owners.length
    await until(() => owners.length > count)
    return { socket, owner: owners.at(-1)! }
  }
  return { owners, connect }
}

t.test('chunks of any size reach a client whole and in order; what waits is counted, and nothing is left', async t => {
  const trouble = listenForTrouble(t)
  const { connect } = await serve(t)
  const step = fc.oneof(fc.constant('pause' as const), fc.constant('resume' as const), fc.integer({ min: 1, max: 600_000 }), fc.constantFrom(65_527, 65_528, 65_529, 131_064))
  const property = fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 12 }), fc.boolean(), fc.boolean(), async (steps, isWrapped, isAscii) => {
    const { socket, owner } = await connect()
    const destination = isWrapped ? new PassThrough() : undefined
    if (destination !== undefined) {
      owner.response.writeHead(200)
      destination.pipe(owner.response)
    }
    owner.open(destination)
    const target = destination ?? owner.response.socket!
    const listeners = target.listenerCount('drain')
    let sent = FIRST
    const check = () => {
      const { writer, budget } = owner
      if (budget.used !== owner.held) throw new Error(`${budget.used} bytes are held, not ${owner.held}`)
      if (owner.blocked !== target.writableNeedDrain) throw new Error(`blocked: ${owner.blocked}`)
      if (target.listenerCount('drain') > listeners + 1) throw new Error('one listener for each wait')
      if (writer.queuedBytes < target.writableLength || (writer.hasRest && writer.queuedBytes === target.writableLength)) throw new Error('the rest waits, too')
    }
    for (const step of steps) {
      if (step === 'pause') socket.socket.pause()
      else if (step === 'resume') socket.socket.resume()
      else {
        const text = (isAscii ? 'x' : 'é').repeat(Math.ceil(step / (isAscii ? 1 : 2)))
        sent += text
        owner.write(new Chunk(text))
      }
      check()
      await turns(1)
      check()
    }
    socket.socket.resume()
    await until(() => owner.queue.length === 0)
    owner.writer.end(new Chunk('bye'), null)
    if (owner.budget.used !== 0 || owner.writer.hasRest) throw new Error('nothing waits after the end')
    const [answer] = await socket.waitForAnswers(1)
    if (answer!.body !== `${sent}bye`) throw new Error(`${answer!.body.length} of ${sent.length + 3} characters`)
    await until(() => owner.heard.at(-1) === 'finish')
    if (owner.writer.queuedBytes !== 0) throw new Error('nothing is counted after the end')
    socket.close()
  })
  await fc.assert(property, { numRuns: 25 })
  t.strictSame(trouble, [])
})

t.test('a response that other code has ended takes nothing more, and its socket goes on', async t => {
  const { connect } = await serve(t)
  for (const size of [1, 65_000, 500_000]) {
    const { socket, owner } = await connect()
    owner.open()
    owner.response.end()
    owner.write(new Chunk('x'.repeat(size)))
    t.strictSame([owner.writer.hasRest, owner.budget.used], [false, 0])
    socket.send({ path: '/plain' })
    t.strictSame((await socket.waitForAnswers(2)).map(({ body }) => body), [FIRST, 'plain'], `${size} bytes`)
    await until(() => owner.heard.includes('finish'))
  }
})

t.test('a stream that ends in the middle of a chunk is whole, and holds nothing from then on', async t => {
  const { connect } = await serve(t)
  const { socket, owner } = await connect()
  owner.open()
  socket.socket.pause()
  const text = 'x'.repeat(20_000_000)
  owner.write(new Chunk(text))
  t.ok(owner.writer.hasRest && owner.blocked)
  t.equal(owner.budget.used, owner.held)
  owner.writer.end(new Chunk('bye'), null)
  t.strictSame([owner.writer.hasRest, owner.budget.used], [false, 0])
  socket.socket.resume()
  t.ok((await socket.waitForAnswers(1))[0]!.body === `${FIRST}${text}bye`)
})

t.test('the end is written once, and once only is the destination ended', async t => {
  const { connect } = await serve(t)
  for (const isSlow of [false, true]) {
    const { socket, owner } = await connect()
    const destination = new PassThrough(isSlow ? { highWaterMark: 1 } : {})
    owner.response.writeHead(200)
    let ends = 0
    const end = () => {
      ends++
      destination.end()
    }
    owner.open(destination, end)
    if (!isSlow) destination.pipe(owner.response)
    await turns()
    owner.writer.end(new Chunk('bye'), null)
    t.equal(ends, isSlow ? 0 : 1, 'a destination that has not written all is ended later')
    if (isSlow) destination.pipe(owner.response)
    t.equal((await socket.waitForAnswers(1))[0]!.body, `${FIRST}bye`)
    await until(() => owner.heard.includes('finish'))
    t.equal(ends, 1)
    socket.close()
  }

  // Only a shutdown closes the socket.
  for (const transportMs of [null, 60_000]) {
    const { socket, owner } = await connect()
    owner.open()
    owner.writer.end(new Chunk('bye'), transportMs)
    await socket.waitForAnswers(1)
    if (transportMs === null) {
      socket.send({ path: '/plain' })
      t.equal((await socket.waitForAnswers(2))[1]!.body, 'plain')
    } else {
      await socket.waitForClose()
      t.equal(socket.answers.length, 1)
    }
  }

  // A client that leaves before the destination has written the end.
  const { socket, owner } = await connect()
  const destination = new PassThrough({ highWaterMark: 1 })
  owner.response.writeHead(200)
  let ends = 0
  const end = () => {
    ends++
    return owner.response
  }
  owner.response.end = end
  owner.open(destination, end)
  owner.writer.end(new Chunk('bye'), null)
  socket.close()
  await until(() => owner.heard.includes('finish'))
  destination.resume()
  await until(() => destination.writableLength === 0)
  await turns()
  t.equal(ends, 0)
})

t.test('what wraps a response may throw or fail: its owner is told, and the process lives', async t => {
  const trouble = listenForTrouble(t)
  const { connect } = await serve(t)
  const fail = (): never => { throw new Error('of a wrapper') }
  for (const broken of ['write', 'end'] as const) {
    const { socket, owner } = await connect()
    owner.open()
    owner.response.write = owner.response.write.bind(owner.response)
    const destination = new PassThrough()
    owner.open(destination, () => destination.end())
    if (broken === 'write') destination.write = fail
    else destination.end = fail
    if (broken === 'write') owner.write(new Chunk('x'))
    else owner.writer.end(new Chunk('bye'), null)
    owner.writer.endResponse()
    t.ok(owner.heard.includes('of a wrapper'), broken)
    socket.close()
  }
  const { socket, owner } = await connect()
  const destination = new PassThrough()
  owner.response.writeHead(200)
  owner.open(destination)
  destination.destroy(new Error('corrupt'))
  owner.response.emit('error', new Error('late'))
  await turns()
  socket.close()
  await until(() => owner.heard.includes('finish'))
  owner.response.emit('error', new Error('later'))
  await turns()
  t.strictSame(trouble, [])
})

t.test('a response is taken by its writer, or by a head; nothing of a stream stays with a socket that is kept alive', async t => {
  const { owners, connect } = await serve(t)
  const { socket, owner: { response } } = await connect()
  t.equal(isTaken(response), true)
  const ref = await (async () => {
    const owner = owners.pop()!
    const { socket } = owner.response
    owner.open()
    owner.writer.end(new Chunk('bye'), null)
    await until(() => owner.heard.includes('finish'))
    t.equal(isTaken(owner.response), true, 'its head is sent')
    owner.heard.length = 0
    socket!.emit('drain')
    owner.response.emit('close')
    t.strictSame(owner.heard, [], 'it hears no more')
    return new WeakRef(owner.writer)
  })()
  socket.socket.write(requestText({ path: '/plain' }))
  await socket.waitForAnswers(2)
  await until(() => {
    collect()
    return ref.deref() === undefined
  })
  t.equal(socket.closed, false)
})
