import assert from 'node:assert/strict'
import fc from 'fast-check'
import Fastify, { type FastifyInstance } from 'fastify'
import ssePlugin, { SSEError, SSEManager, type BroadcastOptions, type EventInput, type ManagerOptions, type SSEOptions } from '../../lib/index.js'
import { resolveOptions } from '../../lib/options.js'
import { requestText } from '../helpers/raw.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { AnswerReader } from '../helpers/sse.js'
import { onTrouble } from '../helpers/trouble.js'
import { turns } from '../helpers/wait.js'
import { nodeSteps, travel } from './nodes.js'
import { Session, setups, steps } from './session.js'
import { Wire } from './wire.js'

/** Something that holds for everything a seed can make. `met` counts what was come across, to show that it was. */
export interface Property {
  name: string
  /** Runs in the suite. */
  runs: number
  make (met: Record<string, number>): fc.IAsyncPropertyWithHooks<any>
}

/** What the process complains about while `run` runs, thrown at its end. */
async function withoutTrouble (run: () => Promise<void>): Promise<void> {
  const trouble: unknown[] = []
  const stop = onTrouble(what => { trouble.push(what) })
  try {
    await run()
    await turns(2)
  } finally {
    stop()
  }
  if (trouble.length > 0) throw trouble[0]
}

function isOurs (error: unknown): boolean {
  return error instanceof SSEError && error.message !== ''
}

// --- Options ---

const DEFAULTS = resolveOptions({})
const optionName = fc.constantFrom(...Object.keys(DEFAULTS), 'authHandler', 'allowedOrigins', 'events', 'broker', 'path', '__proto__', 'constructor', 'x')
const optionValue = fc.oneof(fc.anything(), fc.constantFrom<unknown>(0, 1, -1, 0.5, NaN, Infinity, 2 ** 53, 1e9, true, null, '', '/x', 'patterns', () => null), fc.dictionary(fc.constantFrom('maxEvents', 'maxAgeMs', 'maxBytes', 'intervalMs', 'instance', 'reply', 'x'), fc.anything()))

const options: Property = {
  name: 'options: taken, or refused by name',
  runs: 1500,
  make: met => fc.asyncProperty(fc.oneof(fc.dictionary(optionName, optionValue, { maxKeys: 3 }), fc.anything()), async given => {
    let manager: SSEManager
    try {
      manager = new SSEManager(given as ManagerOptions)
    } catch (error) {
      assert.ok(isOurs(error) && (error as SSEError).code === 'SSE_ERR_INVALID_OPTION', String(error))
      met['refused'] = (met['refused'] ?? 0) + 1
      return
    }
    met['taken'] = (met['taken'] ?? 0) + 1
    await manager.close()
  })
}

// --- Events ---

const text = fc.oneof(fc.string({ unit: 'binary' }), fc.string(), fc.constantFrom('\r', '\n', '\r\n', 'a\rdata: b', 'x\n\nevent: forged', '\0', '\ufeff', '\u2028', '\ud800', 'sse:close', 'open', 'message', ' x', ':'))
const thrower = { toJSON () { throw new TypeError('no') } }
const data = fc.oneof(text, fc.anything({ withBigInt: true, withDate: true, withMap: true, withNullPrototype: true, withTypedArray: true, withSparseArray: true }), fc.constantFrom<unknown>(thrower, { deep: thrower }, Symbol('x'), () => 1, undefined, { toJSON: () => 'a\nb' }))
const mostly = <T>(usual: fc.Arbitrary<T>, odd: fc.Arbitrary<unknown> = fc.anything()) => fc.oneof({ weight: 9, arbitrary: usual as fc.Arbitrary<unknown> }, { weight: 1, arbitrary: odd })
const input = fc.record({
  event: mostly(fc.constantFrom(undefined, 'message', 'tick', 'é'), text),
  data: mostly(fc.oneof(text, fc.jsonValue()), data),
  priority: mostly(fc.constantFrom(undefined, 0, 1, 2, 3)),
  retry: mostly(fc.constantFrom(undefined, 100, 5000)),
  key: mostly(fc.constantFrom(undefined, 'k'))
}, { requiredKeys: ['data'] })
const target = fc.oneof(
  { weight: 9, arbitrary: fc.constant({}) },
  { weight: 1, arbitrary: fc.dictionary(fc.constantFrom('userIds', 'subscriptionIds', 'clientIds', 'exceptClientIds', 'filter', 'local', 'ephemeral', 'userId'), fc.oneof(fc.anything(), fc.array(text))) }
)

const events: Property = {
  name: 'events: arrive as they were given, or are refused whole',
  runs: 250,
  make: met => fc.asyncProperty(fc.array(fc.tuple(input, target), { maxLength: 8 }), given => withoutTrouble(async () => {
    const { app, open } = await serve({})
    try {
      const reader = open({ path: '/managed' })
      await turns(4)
      const expected: string[] = []
      for (const [event, target] of given) {
        try {
          const { delivered } = await app.sse.broadcastEvent(event as EventInput, target as BroadcastOptions)
          if (delivered === 0) continue
        } catch (error) {
          assert.ok(isOurs(error), String(error))
          met['refused'] = (met['refused'] ?? 0) + 1
          continue
        }
        await turns(2)
        const { event: name = 'message', data } = event
        const whole = typeof data === 'string' ? data : JSON.stringify(data)
        expected.push(JSON.stringify([name, whole.replace(/\r\n?/g, '\n')]))
        met['arrived'] = (met['arrived'] ?? 0) + 1
      }
      await turns(3)
      // A BOM at the very start of a stream is stripped; this stream starts with a comment.
      assert.deepEqual(reader.events.map(({ event, data }) => JSON.stringify([event, data])), expected)
    } finally {
      await app.close()
    }
  }))
}

// --- Requests ---

interface Memory {
  app: FastifyInstance
  open (request: { method?: string, path?: string, version?: '1.0' | '1.1', headers?: Record<string, string> }): AnswerReader
}

/** A server that is reached over wires of memory. */
async function serve (options: SSEOptions, source?: () => AsyncIterable<string>): Promise<Memory> {
  const app = Fastify({ forceCloseConnections: true })
  await app.register(ssePlugin, { drainMs: 100, ...options })
  app.get('/managed', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
  app.get('/source', (request, reply) => reply.sse(source ?? ['a', 'b']))
  app.get('/plain', async () => 'plain')
  app.post('/post', (request, reply) => reply.sse(['a']))
  await app.ready()
  return {
    app,
    open (request) {
      const reader = new AnswerReader()
      const wire = new Wire({ networkBytes: 1 << 20, socketBytes: 16_384 }, bytes => { reader.push(bytes) })
      app.server.emit('connection', wire)
      wire.push(requestText(request))
      return reader
    }
  }
}

const headerValue = fc.oneof(fc.string({ maxLength: 40 }), fc.constantFrom('x.1', '*', '0', '0~0', 'a'.repeat(9000), '\xff\xfe', 'text/event-stream', 'text/html', '*/*;q=0', 'close', 'keep-alive', 'gzip', 'chunked', '-1', '1'))
  .map(value => value.replace(/[^\t\x20-\x7e\x80-\xff]/g, '').trim())
const request = fc.record({
  method: fc.constantFrom('GET', 'GET', 'GET', 'HEAD', 'POST', 'OPTIONS', 'get', 'PRI'),
  path: fc.oneof(fc.constantFrom('/managed', '/managed', '/source', '/plain', '/post', '/managed?lastEventId=%00', '/managed?last_event_id=x.1&lastEventId', '/nothing', '*', '//', '/%'), fc.webPath()),
  version: fc.constantFrom<'1.0' | '1.1'>('1.1', '1.1', '1.0'),
  headers: fc.dictionary(fc.constantFrom('last-event-id', 'accept', 'connection', 'cookie', 'authorization', 'origin', 'sec-fetch-site', 'transfer-encoding', 'content-length', 'expect', 'upgrade', 'te', 'accept-encoding'), headerValue, { maxKeys: 4 })
})
const conversation = fc.record({
  requests: fc.array(request, { minLength: 1, maxLength: 3 }),
  garbage: fc.option(fc.uint8Array({ maxLength: 60 })),
  /** Where the bytes are cut into pieces. */
  cuts: fc.array(fc.nat(400), { maxLength: 4 }),
  /** How many of them are sent at all. */
  sent: fc.oneof(fc.constant(Infinity), fc.nat(300)),
  end: fc.constantFrom('cut', 'finish', 'stay')
})

const requests: Property = {
  name: 'requests: half, pipelined, garbage; nobody else notices',
  runs: 200,
  make: met => fc.asyncProperty(fc.array(conversation, { minLength: 1, maxLength: 6 }), conversations => withoutTrouble(async () => {
    const { app, open } = await serve({})
    const wires: Wire[] = []
    try {
      const witness = open({ path: '/managed' })
      await turns(4)
      for (const { requests, garbage, cuts, sent, end } of conversations) {
        let answered = false
        const wire = new Wire({ networkBytes: 1 << 20, socketBytes: 16_384 }, () => { answered = true })
        wires.push(wire)
        app.server.emit('connection', wire)
        const bytes = Buffer.concat([Buffer.from(requests.map(requestText).join(''), 'latin1'), garbage ?? Buffer.alloc(0)]).subarray(0, sent)
        let from = 0
        for (const to of [...cuts.sort((a, b) => a - b), bytes.length]) {
          if (wire.destroyed || to <= from) continue
          wire.push(bytes.subarray(from, to))
          from = to
          await turns(1)
        }
        await app.sse.broadcastEvent({ data: 'x' })
        await turns(2)
        met[answered ? 'answered' : 'unanswered'] = (met[answered ? 'answered' : 'unanswered'] ?? 0) + 1
        if (end === 'cut') wire.cut()
        else if (end === 'finish') wire.finish()
      }
      await turns(3)
      assert.equal(witness.named('message').length, conversations.length)
      for (const wire of wires) wire.cut()
      await turns(3)
      assert.equal(app.sse.connectionCount, 1)
    } finally {
      await app.close()
    }
    assert.equal(app.sse.connectionCount, 0)
  }))
}

// --- Streams of their own ---

const sources: Property = {
  name: 'sources: in order and whole for as long as the client stays, and always told of the end',
  runs: 200,
  make: met => fc.asyncProperty(
    fc.array(fc.record({ size: fc.constantFrom(0, 10, 1000, 20_000, 100_000), pause: fc.boolean() }), { maxLength: 12 }),
    fc.constantFrom('end', 'throw', 'wait'),
    fc.record({ networkBytes: fc.constantFrom(0, 100, 2000, 1 << 20), socketBytes: fc.constantFrom(1, 500, 16_384) }),
    fc.array(fc.oneof(fc.record({ read: fc.constantFrom(1, 100, 5000, 200_000) }), fc.record({ turn: fc.constantFrom(1, 3) })), { maxLength: 12 }),
    fc.constantFrom('stay', 'cut', 'close'),
    (items, ending, options, moves, end) => withoutTrouble(async () => {
      let finished = 0
      const { app } = await serve({ outboxBytes: 2048 }, async function * () {
        try {
          for (const [i, { size, pause }] of items.entries()) {
            if (pause) await turns(1)
            yield `${i} ${'x'.repeat(size)}`
          }
          if (ending === 'throw') throw new RangeError('of its own')
          if (ending === 'wait') await new Promise(() => {})
        } finally {
          finished++
        }
      })
      const reader = new AnswerReader()
      const wire = new Wire(options, bytes => { reader.push(bytes) })
      try {
        wire.flow(false)
        app.server.emit('connection', wire)
        wire.push(requestText({ path: '/source' }))
        for (const move of moves) {
          if ('read' in move) wire.carry(move.read)
          else await turns(move.turn)
        }
        const got = () => reader.named('message').map(({ data }) => parseInt(data!))
        if (end === 'cut') {
          wire.cut()
        } else {
          if (end === 'close') for (const connection of app.sse.connections()) connection.close('kicked')
          wire.flow(true)
          const whole = () => reader.ended || (ending === 'wait' && got().length === items.length)
          for (let i = 0; i < 3000 && !whole(); i++) await turns(1)
          if (end === 'stay') assert.equal(got().length, items.length)
          if (end === 'stay' && ending !== 'wait') {
            assert.equal(reader.ended, true)
            assert.equal(reader.named('sse:error').length, ending === 'throw' ? 1 : 0)
          }
        }
        assert.deepEqual(got(), got().map((_, i) => i))
        met[`${ending}, ${end}`] = (met[`${ending}, ${end}`] ?? 0) + 1
        wire.cut()
        await turns(5)
        assert.equal(app.sse.connectionCount, 0)
        // One that waits for something that never comes cannot run its `finally`: nothing in JavaScript can make it.
        if (ending !== 'wait') assert.equal(finished <= 1, true)
      } finally {
        await app.close()
      }
    }))
}

// --- Everything together ---

const sessions: Property = {
  name: 'sessions: ordered, whole or a gap, nothing twice, nothing foreign, bounded, and nothing left',
  runs: 150,
  make: met => fc.asyncProperty(setups, steps, async (setup, steps) => {
    const session = new Session(setup)
    await session.run(steps)
    for (const [what, count] of Object.entries(session.met)) met[what] = (met[what] ?? 0) + count
  })
}

// --- Two nodes, one of which is late ---

let redis: Promise<RedisServer> | null = null
let logs = 0

/** Ends what the properties have started. */
export async function stopRedis (): Promise<void> {
  await (await redis)?.stop()
}

const nodes: Property = {
  name: 'nodes: moving between them, one of them late, nothing comes twice, nothing is lost, and there is no gap',
  runs: withoutRedis === false ? 12 : 0,
  make: met => fc.asyncProperty(nodeSteps, async steps => {
    redis ??= RedisServer.start()
    await travel(await redis, `nodes-${++logs}`, steps, met)
  })
}

export const PROPERTIES: readonly Property[] = [options, events, requests, sources, sessions, nodes]
