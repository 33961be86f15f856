import fc from 'fast-check'
import assert from 'node:assert/strict'
import t, { type Test } from 'tap'
import { connector, type Connection } from '../../lib/log/redis/client.js'
import { APPEND } from '../../lib/log/redis/scripts/append.js'
import { CLAIM } from '../../lib/log/redis/scripts/claim.js'
import { GREET } from '../../lib/log/redis/scripts/greet.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'

// The scripts that write the log, each against a model or a table, on a real Redis.

const REPLY_MS = 20_000
const LOST = 2 ** 53 - 1
const FAR = String(2 ** 52)
let prefixes = 0

type StreamEntry = [id: string, fields: string[]]

/** A log of its own, and the commands of a test. */
function logOn (connection: Connection) {
  const prefix = `{log-${++prefixes}}`
  const ask = (...command: (string | number)[]) => connection.send(command.map(String), REPLY_MS)
  const keys = ['meta', 'log', 'ephemeral'].map(name => `${prefix}:${name}`) as [string, string, string]
  return {
    keys,
    ask,
    meta: async () => {
      const flat = await ask('HGETALL', keys[0]) as string[]
      return Object.fromEntries(flat.flatMap((name, i) => i % 2 === 0 ? [[name, flat[i + 1]]] : []))
    },
    stream: async (key: string) => await ask('XRANGE', key, '-', '+') as StreamEntry[],
    append: async (writer: string, ...args: (string | number)[]) => (await APPEND.run(connection, [...keys, `${prefix}:writer:${writer}`], args.map(String), REPLY_MS) as unknown[]).map(String),
    greet: async ({ asked = 0, giveUp = '' as string | number, writable = '0', progress = '0:0:0' } = {}) => {
      const reply = (await GREET.run(connection, keys, [String(asked), String(giveUp), writable, progress], REPLY_MS) as unknown[]).map(String)
      const [epoch, oldest, newest, ephemerals, now, askedTime, newestTime, why, ...rest] = reply
      const [command, commandTime, ...previous] = rest.map(Number)
      return { epoch: Number(epoch), oldest: Number(oldest), newest: Number(newest), ephemerals: Number(ephemerals), now: Number(now), askedTime, newestTime, why, command, commandTime, previous }
    }
  }
}

t.test('scripts', { skip: withoutRedis }, async t => {
  const server = await RedisServer.start()
  t.teardown(() => server.stop())
  const connection = await connector(server.url, undefined, REPLY_MS)(() => {}, new AbortController().signal)
  t.teardown(() => connection.destroy())

  await t.test('batches are appended as a model says: numbers, bytes before each entry, order of both kinds, the newest command, and what the bounds leave', async t => {
    const item = fc.record({ kind: fc.constantFrom('0', '1', '1', '2'), size: fc.integer({ min: 1, max: 9 }) })
    const bounds = fc.record({ maxEvents: fc.constantFrom(1, 3, 6, 100), maxBytes: fc.constantFrom(5, 20, 1_000) })
    await t.resolves(fc.assert(fc.asyncProperty(bounds, bounds, fc.array(fc.array(item, { minLength: 1, maxLength: 6 }), { minLength: 1, maxLength: 8 }), async (logBounds, ephemeralBounds, batches) => {
      const { keys, meta, stream, append, greet } = logOn(connection)
      const { epoch } = await greet()
      const model = ([logBounds, ephemeralBounds] as const).map(bounds => ({ ...bounds, bytes: 0, newest: 0, entries: [] as { number: number, bytes: number, size: number, fields: unknown[] }[] }))
      let [command, commandTime] = [0, 0]
      for (const [n, batch] of batches.entries()) {
        const [log, ephemeral] = model as [typeof model[0], typeof model[0]]
        const first = log.newest + 1
        const args = [n + 1, FAR, 1_000, ...[logBounds, ephemeralBounds].flatMap(({ maxEvents, maxBytes }) => [maxEvents, FAR, maxBytes]), ...batch.flatMap(({ kind, size }, i) => [kind, size, `head ${n}`, `data ${i}`]), '0:0:0']
        const reply = await append('w', ...args)
        const [done, now, ...place] = reply
        assert.deepEqual([done, place], ['done', [String(epoch), String(first)]])
        for (const [i, { kind, size }] of batch.entries()) {
          const [own, other] = kind === '0' ? [ephemeral, log] : [log, ephemeral]
          own.entries.push({ number: ++own.newest, bytes: own.bytes, size, fields: ['t', now, 'b', own.bytes, 'o', other.newest, 'h', `head ${n}`, 'd', `data ${i}`, 'c', command, 'ct', commandTime] })
          own.bytes += size
          if (kind === '2') [command, commandTime] = [own.newest, Number(now)]
        }
        for (const own of model) {
          own.entries = own.entries.slice(-own.maxEvents)
          while (own.entries.length > 0 && own.bytes - own.entries[0]!.bytes > own.maxBytes) own.entries.shift()
        }
        for (const [i, own] of model.entries()) assert.deepEqual(await stream(keys[i + 1]!), own.entries.map(({ number, fields }) => [`${epoch}-${number}`, fields.map(String)]))
        const fields = await meta()
        assert.deepEqual(['seq', 'ephemerals', 'command', 'commandTime'].map(name => fields[name]), [log.newest, ephemeral.newest, command, commandTime].map(String))
        for (const [own, name] of [[log, 'log'], [ephemeral, 'ephemeral']] as const) {
          if (own.newest === 0) continue
          assert.equal(fields[`${name}Bytes`], String(own.bytes))
          if (own.entries.length > 0) assert.equal(fields[`${name}FirstBytes`], String(own.entries[0]!.bytes))
        }
        // Sent again, also after a later one, it is answered as before and changes nothing.
        for (const number of [n + 1, n]) assert.deepEqual((await append('w', number, ...args.slice(1))).filter((_, i) => i !== 1), [done, ...place])
        assert.deepEqual(await append('other', n + 1, 1_000, ...args.slice(2)).then(([late]) => late), 'late')
        assert.deepEqual(await meta(), fields)
        assert.equal((await stream(keys[1]!)).length, log.entries.length)
      }
    }), { numRuns: 60 }))
  })

  await t.test('a writer is remembered for the time that it asks for, and one that was late is not', async t => {
    const { ask, keys, append, stream } = logOn(connection)
    const batch = (deadline: string | number) => [1, deadline, 60_000, 9, FAR, 1e6, 9, FAR, 1e6, '1', 1, 'head', 'data', '0:0:0']
    const writer = keys[0].replace('meta', 'writer:w')
    const [late, now] = await append('w', ...batch(1))
    t.strictSame([late, await ask('EXISTS', writer), await stream(keys[1])], ['late', 0, []])
    const [done, at, epoch] = await append('w', ...batch(Number(now) + 60_000))
    t.equal(done, 'done')
    t.ok(Number(at) >= Number(now))
    const left = Number(await ask('PTTL', writer))
    t.ok(left > 0 && left <= 60_000, `${left} ms`)
    t.equal(await ask('GET', writer), `1:${epoch}:1`)
  })

  await t.test('what is too old leaves the log in steps, from the front, also if its accounts are lost', async t => {
    const ages = async (ages: number[], added: number, lost: string[] = []) => {
      const { ask, keys, append, stream, greet } = logOn(connection)
      const { epoch, now } = await greet()
      for (const [i, age] of ages.entries()) await ask('XADD', keys[1], `${epoch}-${i + 1}`, ...age < 0 ? ['a', 'b'] : ['t', now - age * 1_000, 'b', i * 10, 'o', 0, 'h', '', 'd', ''])
      await ask('HSET', keys[0], 'seq', ages.length, 'logBytes', ages.length * 10, 'logFirstBytes', 0, 'logFirstTime', now - ages[0]! * 1_000)
      if (lost.length > 0) await ask('HDEL', keys[0], ...lost)
      await append('w', 1, FAR, 1_000, 10_000, 60_000, 1e6, 9, FAR, 1e6, ...Array.from({ length: added }, () => ['1', 10, '', '']).flat(), '0:0:0')
      return (await stream(keys[1])).map(([id]) => Number(id.split('-')[1]))
    }
    t.strictSame(await ages([90, 80, 30, 70, 10], 1), [3, 4, 5, 6], 'up to the first that is young')
    t.strictSame(await ages([90, 80, 70], 2), [4, 5])
    t.strictSame(await ages([30, 90], 1), [1, 2, 3])
    for (const lost of [['logFirstTime'], ['logFirstBytes'], ['logFirstTime', 'logFirstBytes']]) t.strictSame(await ages([90, 80, 30, 10], 1, lost), [3, 4, 5], `without ${lost}`)
    t.strictSame(await ages([-1, 90, 30], 1, ['logFirstTime']), [3, 4], 'one that was written from outside')
    for (const added of [1, 3]) t.equal((await ages(new Array(400).fill(90), added)).length, 400 - 256, 'as many at once as were added, and 256')
  })

  await t.test('a batch that meets an id that no node has given begins an epoch, and is there once', async t => {
    for (const stray of ['5000000000000-1', '18446744073709551615-18446744073709551615']) {
      for (const [i, name] of (['log', 'ephemeral'] as const).entries()) {
        const { ask, keys, append, stream, greet } = logOn(connection)
        const { epoch } = await greet()
        const batch = (number: number) => append('w', number, FAR, 1_000, 9, FAR, 1e6, 9, FAR, 1e6, '1', 1, 'head', '1', '0', 1, 'head', '2', '2', 1, 'head', '3', '0:0:0')
        await batch(1)
        await ask('XADD', keys[i + 1]!, stray, 'a', 'b')
        const [done, , next, first] = await batch(2)
        t.strictSame([done, first, Number(next) > epoch], ['done', '1', true], `${name} ${stray}`)
        t.strictSame((await Promise.all(keys.slice(1).map(stream))).map(entries => entries.map(([id, fields]) => [id, fields[9]])), [[[`${next}-1`, '1'], [`${next}-2`, '3']], [[`${next}-1`, '2']]])
        t.match(await greet(), { epoch: Number(next), newest: 2, ephemerals: 1, command: 2, why: `the stream ${keys[i + 1]} has an id that no node has given`, previous: [epoch, 2] })
      }
    }
  })

  await t.test('bytes are counted anew from what is there', async t => {
    const { ask, keys, append, stream, meta } = logOn(connection)
    const batch = (number: number) => append('w', number, FAR, 1_000, 100, FAR, 30, 100, FAR, 30, '1', 10, '', '', '0', 10, '', '', '0:0:0')
    for (let n = 1; n <= 5; n++) await batch(n)
    for (const name of ['log', 'ephemeral']) {
      await ask('HDEL', keys[0], `${name}FirstBytes`)
      await ask('HSET', keys[0], `${name}FirstTime`, 'x')
    }
    await batch(6)
    for (const key of keys.slice(1)) t.equal((await stream(key)).length, 3)
    t.match(await meta(), { logFirstBytes: '30', logBytes: '60', ephemeralFirstBytes: '30', ephemeralBytes: '60' })
    // A stream that was emptied begins again with what is added.
    for (const key of keys.slice(1)) await ask('XTRIM', key, 'MAXLEN', 0)
    await batch(7)
    t.match(await meta(), { logFirstBytes: '60', logBytes: '70', ephemeralFirstBytes: '60', ephemeralBytes: '70' })
    t.strictSame(await Promise.all(keys.slice(1).map(async key => (await stream(key)).length)), [1, 1])
  })

  /** A log in a given state, and what it says to a caller. */
  async function state ({ meta = {}, entries = [] as number[], ephemerals = [] as number[] }: { meta?: Record<string, string | number>, entries?: number[], ephemerals?: number[] } = {}) {
    const log = logOn(connection)
    await log.ask('HSET', log.keys[0], ...Object.entries({ epoch: 1_000, seq: entries.at(-1) ?? 0, ephemerals: ephemerals.at(-1) ?? 0, ...meta }).flat())
    for (const number of entries) await log.ask('XADD', log.keys[1], `1000-${number}`, 't', number * 10, 'b', 0, 'o', 0, 'h', '', 'd', '')
    for (const number of ephemerals) await log.ask('XADD', log.keys[2], `1000-${number}`, 't', 5, 'b', 0, 'o', 0, 'h', '', 'd', '')
    return log
  }

  await t.test('where the log stands', async t => {
    const log = await state({ entries: [3, 4, 6], ephemerals: [2], meta: { why: 'of the test', command: 4, commandTime: 40, previous: 900, previousCommand: 2, previousTime: 20 } })
    const before = await log.meta()
    const { now, ...place } = await log.greet({ asked: 4 })
    t.ok(Math.abs(now - Date.now()) < 60_000)
    t.strictSame(place, { epoch: 1_000, oldest: 3, newest: 6, ephemerals: 2, askedTime: '40', newestTime: '60', why: 'of the test', command: 4, commandTime: 40, previous: [900, 2, 20] })
    t.match(await log.greet({ asked: 5 }), { askedTime: '', newestTime: '60' })
    t.strictSame(await log.meta(), before, 'a question changes nothing')
    await log.ask('XTRIM', log.keys[1], 'MAXLEN', 0)
    t.match(await log.greet({ asked: 6 }), { epoch: 1_000, oldest: 7, newest: 6, askedTime: '', newestTime: '' }, 'a log of which nothing is left')
    await log.ask('DEL', log.keys[2])
    t.match(await log.greet(), { epoch: 1_000, ephemerals: 2 }, 'ephemeral entries are nothing to be lost')

    const old = await state()
    await old.ask('XADD', old.keys[1], '999-9', 'a', 'b')
    t.match(await old.greet({ asked: 9 }), { epoch: 1_000, oldest: 1, newest: 0, askedTime: '', newestTime: '', why: '', command: 0, commandTime: 0, previous: [0, 0, 0] }, 'of this epoch there is no entry')
    await old.ask('HSET', old.keys[0], 'seq', 1)
    t.match(await old.greet(), { oldest: 2 })
    await old.ask('XADD', old.keys[1], '1000-1', 't', 7)
    t.match(await old.greet({ asked: 1 }), { epoch: 1_000, oldest: 1, askedTime: '7' })
  })

  await t.test('what makes an epoch the last one, and why', async t => {
    const meta = (log: ReturnType<typeof logOn>) => log.keys[0]
    type Harm = [why: RegExp, harm: (log: ReturnType<typeof logOn>) => Promise<unknown>]
    const harms: Harm[] = [
      [/^Redis has lost the log .*the key \{log-\d+\}:meta was deleted\)$/, log => log.ask('DEL', meta(log))],
      [/^the key \S+:log was deleted$/, log => log.ask('DEL', log.keys[1])],
      [/^the stream \S+:log has the entry 1000-3, which no node has added$/, log => log.ask('XADD', log.keys[1], '1000-3', 'a', 'b')],
      [/^the stream \S+:ephemeral has the entry 1001-0, which no node has added$/, log => log.ask('XADD', log.keys[2], '1001-0', 'a', 'b')],
      ...['meta', 'log', 'ephemeral'].map((name, i): Harm => [new RegExp(`^the key \\S+:${name} was overwritten with another type$`), async log => {
        await log.ask('DEL', log.keys[i]!)
        await log.ask('RPUSH', log.keys[i]!, 'x')
      }]),
      ...['epoch', 'seq', 'ephemerals'].flatMap(field => ['', 'x', 'nan', 'inf', '-1', '1.5', '1e300', '9007199254740992'].map((value): Harm => [/^the key \S+:meta was changed$/, log => log.ask('HSET', meta(log), field, value)])),
      ...['epoch', 'seq', 'ephemerals'].map((field): Harm => [/^the key \S+:meta was changed$/, log => log.ask('HDEL', meta(log), field)])
    ]
    for (const [why, harm] of harms) {
      for (const by of ['greet', 'append'] as const) {
        // An entry that no node has added is found by greet; an append that it hinders begins an epoch as well.
        if (by === 'append' && /no node/.test(why.source)) continue
        const log = await state({ entries: [1, 2], ephemerals: [1], meta: { command: 1, commandTime: 10 } })
        await harm(log)
        if (by === 'append') await log.append('w', 1, FAR, 1_000, 9, FAR, 1e6, 9, FAR, 1e6, '1', 1, '', '', '0:0:0')
        const place = await log.greet()
        t.match(place, { why, newest: by === 'append' ? 1 : 0, ephemerals: 0 })
        t.ok(place.epoch > 1_000 && place.epoch <= place.now)
        const { epoch = 0, previous, previousCommand, previousTime } = await log.meta()
        t.strictSame([Number(epoch), [previous, previousCommand, previousTime].map(Number)], [place.epoch, place.previous])
        t.equal((await log.stream(log.keys[1])).length, place.newest)
        t.equal(await log.ask('EXISTS', log.keys[2]), 0)
        t.strictSame(await log.greet({ progress: '0:0:0' }).then(({ epoch }) => epoch), place.epoch, 'once')
      }
    }
    const fine = await state({ entries: [1], ephemerals: [1], meta: { seq: 9007199254740991, logBytes: 'x' } })
    t.match(await fine.greet(), { epoch: 1_000, newest: 9007199254740991 })
  })

  await t.test('what is known of the previous epoch, by what callers have read of it', async t => {
    const cases: [stored: number[], progress: string, previous: number[]][] = [
      [[500, 7, 70], '0:0:0', [500, 7, 70]],
      [[500, 7, 70], '1000:9:90', [500, 7, 70]],
      [[500, 7, 70], '499:9:90', [500, 7, 70]],
      [[500, 7, 70], '500:7:70', [500, 7, 70]],
      [[500, 7, 70], '500:6:60', [500, 7, 70]],
      [[500, 7, 70], '500:8:80', [500, 8, 80]],
      [[500, 7, 70], '500:7:71', [500, LOST, 0]],
      [[500, LOST, 0], '500:8:80', [500, LOST, 0]],
      [[500, 7, 70], '501:3:30', [501, 3, 30]],
      [[0, 0, 0], '501:3:30', [0, 0, 0]]
    ]
    for (const [[previous, previousCommand, previousTime], progress, expected] of cases) {
      const log = await state({ entries: [1], meta: { previous: previous!, previousCommand: previousCommand!, previousTime: previousTime! } })
      t.match(await log.greet({ progress }), { epoch: 1_000, previous: expected }, progress)
      t.strictSame((await log.greet()).previous, expected, 'it is kept')
    }
  })

  await t.test('what a new epoch says of the one before', async t => {
    const wiped = logOn(connection)
    t.match(await wiped.greet(), { previous: [0, 0, 0] })
    await wiped.ask('DEL', wiped.keys[0])
    t.match(await wiped.greet({ progress: '500:7:70' }), { previous: [500, 7, 70] })
    const future = Date.now() + 1e9
    await wiped.ask('DEL', wiped.keys[0])
    t.match(await wiped.greet({ progress: `${future}:7:70` }), { epoch: future + 1, previous: [future, 7, 70] }, 'a later epoch has a greater number, whatever the clock of Redis')
    for (const [progress, previous] of [['0:0:0', [1_000, 5, 50]], ['900:9:90', [1_000, 5, 50]], ['1000:4:40', [1_000, 5, 50]], ['1000:5:50', [1_000, 5, 50]], ['1000:6:60', [1_000, 6, 60]], ['1000:5:51', [1_000, LOST, 0]]] as const) {
      const log = await state({ entries: [5], meta: { command: 5, commandTime: 50 } })
      await log.ask('DEL', log.keys[1])
      t.match(await log.greet({ progress }), { previous, command: 0, commandTime: 0, newest: 0 }, progress)
    }
  })

  await t.test('an epoch is given up if it is the one that the caller means', async t => {
    for (const [giveUp, progress, previous] of [[999, '1000:5:50', null], ['', '1000:5:50', null], [1_000, '1000:5:50', [5, 50]], [1_000, '1000:4:40', [LOST]], [1_000, '1000:4:50', [LOST]], [1_000, '1000:6:60', [LOST]], [1_000, '1000:5:51', [LOST]]] as const) {
      const log = await state({ entries: [5], ephemerals: [1], meta: { command: 5, commandTime: 50 } })
      const place = await log.greet({ giveUp, progress })
      if (previous === null) t.match(place, { epoch: 1_000, newest: 5, ephemerals: 1, previous: [0, 0, 0] })
      else t.match(place, { newest: 0, ephemerals: 0, why: 'entries that a node has read are gone', previous: [1_000, ...previous] })
    }
    const none = await state({ entries: [5] })
    t.match(await none.greet({ giveUp: 1_000, progress: '1000:0:0' }), { previous: [1_000, 0, 0] })
  })

  await t.test('a key is claimed in the epoch of the caller only', async t => {
    const log = await state()
    const key = log.keys[0].replace('meta', 'claim:k')
    const claim = (epoch: string, ttlMs = '60000') => CLAIM.run(connection, [log.keys[0], key], [epoch, ttlMs], REPLY_MS)
    t.strictSame([await claim('999'), await log.ask('EXISTS', key)], [-1, 0])
    t.strictSame([await claim('1000'), await claim('1000'), await claim('999')], [1, 0, -1])
    const left = Number(await log.ask('PTTL', key))
    t.ok(left > 0 && left <= 60_000)
    await log.ask('DEL', log.keys[0])
    t.equal(await claim('1000'), -1)
  })

  await t.test('a Redis that accepts no writes can be read, and says so to a writer', async (t: Test) => {
    const log = await state({ entries: [1], meta: { previous: 500, previousCommand: 7, previousTime: 70 } })
    await log.greet({ writable: '1' })
    await server.ask('REPLICAOF', '127.0.0.1', '1')
    t.match(await log.greet({ progress: '500:8:80' }), { epoch: 1_000, newest: 1, previous: [500, 8, 80] })
    await t.rejects(log.greet({ writable: '1' }), { message: /READONLY/ })
    await t.rejects(log.append('w', 1, FAR, 1_000, 9, FAR, 1e6, 9, FAR, 1e6, '1', 1, '', '', '0:0:0'), { message: /READONLY/ })
    await server.ask('REPLICAOF', 'NO', 'ONE')
    t.match(await log.greet(), { previous: [500, 7, 70] })
  })
})
