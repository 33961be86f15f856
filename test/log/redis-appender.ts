import t from 'tap'
import type { Appended } from '../../lib/log/redis/store.js'
import { appending, unavailable } from '../helpers/appender.js'
import { turns } from '../helpers/wait.js'

t.test('messages of a turn share a batch of 128 or a megabyte at most, and the next is sent when it is answered', async t => {
  const { appender, sent, greets, reports, connect, publish, see } = appending(t)
  await connect()
  t.strictSame([greets, reports], [[{ asked: 0, writable: true }], [null]], 'a Redis that accepts no writes is no connection')
  const texts = Array.from({ length: 130 }, (_, i) => String(i))
  const small = texts.map(text => publish(text))
  await turns(1)
  const large = [400, 400, 400, 2_000, 1].map(kilobytes => publish('x'.repeat(kilobytes * 1_000)))
  await turns(2)
  t.equal(sent.length, 1, 'one at a time')
  let first = 1
  for (let i = 0; i < 5; i++) {
    sent[i]!.resolve({ epoch: 1, first })
    await turns(1)
    see(sent[i]!, first)
    first += sent[i]!.items.length
    await turns(1)
  }
  t.strictSame(sent.map(({ number, texts }) => [number, texts.length]), [[1, 128], [2, 4], [3, 1], [4, 1], [5, 1]])
  t.strictSame(sent[0]!.texts.concat(sent[1]!.texts.slice(0, 2)), texts, 'in order')
  t.equal(sent[3]!.texts[0]!.length, 2_000_000, 'one that is larger goes alone')
  t.strictSame((await Promise.all([...small, ...large])).map(({ seq }) => seq), Array.from({ length: 135 }, (_, i) => i + 1))
  appender.seen('unknown', 1, 1)
  await appender.close()
})

t.test('a batch whose reply was lost is sent again as it was; what waits behind it is rejected, or waits', async t => {
  for (const waitWhenDown of [false, true]) {
    const { appender, sent, failures, connect, publish, see } = appending(t, { waitWhenDown })
    if (!waitWhenDown) t.throws(() => publish('before'), unavailable(/has not been reached yet|cannot be reached; nothing was published/))
    const first = await connect()
    const one = publish('1')
    await turns(1)
    const behind = publish('2')
    const lost = new Error('the socket has closed')
    if (waitWhenDown) {
      // The link learns of it first, and has made another connection when the append fails.
      appender.lost(lost)
      await connect()
      sent[0]!.reject(lost)
    } else {
      sent[0]!.reject(lost)
      await turns(1)
      t.strictSame(failures, [lost])
      t.throws(() => publish('at once'), unavailable(/nothing was published/))
      appender.lost(lost)
      await t.rejects(behind, unavailable(/cannot be reached; nothing was published/, lost))
      t.throws(() => publish('3'), unavailable(/cannot be reached; nothing was published/, lost))
      await connect()
    }
    await turns(1)
    t.equal(sent.length, 2)
    t.strictSame([sent[1]!.number, sent[1]!.texts], [1, ['1']], 'the same number')
    t.not(sent[1]!.over, first)
    sent[1]!.resolve({ epoch: 1, first: 1 })
    await turns(1)
    see(sent[1]!, 1)
    t.strictSame(await one, { seq: 1, delivered: 1 })
    if (waitWhenDown) {
      t.strictSame([sent[2]!.number, sent[2]!.texts], [2, ['2']])
      sent[2]!.resolve({ epoch: 1, first: 2 })
      see(sent[2]!, 2)
      t.strictSame(await behind, { seq: 2, delivered: 1 })
    } else {
      t.equal(sent.length, 2)
    }
    t.equal(failures.length, waitWhenDown ? 0 : 1, 'the new connection goes on')
    await appender.close()
  }
})

t.test('a batch that Redis refuses is rejected, and never sent again', async t => {
  const { appender, sent, failures, connect, publish } = appending(t)
  await connect()
  const [one, two] = [publish('1'), publish('2')]
  await turns(1)
  const refusal = new Error('OOM command not allowed, with the data of a user')
  sent[0]!.reject(refusal)
  for (const publishing of [one, two]) await t.rejects(publishing, unavailable(/^The event log cannot be written, Redis answers OOM; nothing was published$/, refusal))
  t.strictSame(failures, [refusal])
  appender.lost(refusal)
  await connect()
  publish('3')
  await turns(1)
  t.strictSame(sent.map(({ number, texts }) => [number, texts]), [[1, ['1', '2']], [2, ['3']]])
})

t.test('a message that this node will not read any more is answered by what became of it', async t => {
  const { appender, sent, connect, publish } = appending(t)
  await connect()
  const batch = async (place: Appended, ...ephemeral: boolean[]) => {
    const publishing = ephemeral.map(ephemeral => publish('', { ephemeral }))
    await turns(1)
    sent.at(-1)!.resolve(place)
    await turns(1)
    return publishing
  }
  const lost = unavailable(/was lost together with the event/)
  appender.skipped(1, 19)
  const [a, b, h, c] = await batch({ epoch: 1, first: 20 }, false, true, false, false)
  for (const [position, publishing] of [[20, a], [21, h]] as const) {
    appender.skipped(1, position)
    t.strictSame(await publishing, { seq: position, delivered: 0 }, 'it is in the log')
    t.equal(await Promise.race([b, c, turns(2).then(() => 'pending')]), 'pending')
  }
  appender.skipped(2, 0)
  await t.rejects(b!, lost)
  await t.rejects(c!, lost)
  // The reader was first.
  appender.skipped(3, 5)
  const [d, e] = await batch({ epoch: 3, first: 5 }, false, false)
  t.strictSame(await d, { seq: 5, delivered: 0 })
  appender.seen(sent.at(-1)!.items[1]!.nonce, 6, 4)
  t.strictSame(await e, { seq: 6, delivered: 4 })
  const [f] = await batch({ epoch: 2, first: 9 }, false)
  await t.rejects(f!, lost)
  const [g] = await batch({ epoch: 4, first: 1 }, true)
  appender.seen(sent.at(-1)!.items[0]!.nonce, null, 2)
  t.strictSame(await g, { seq: null, delivered: 2 }, 'of an epoch that it has not reached')
})

t.test('a process that does not read the log answers when a batch is stored, and knows the epoch by then', async t => {
  const told: unknown[] = []
  const { appender, sent, connect, publish } = appending(t, { onStored: epoch => { told.push(epoch) } })
  await connect()
  t.strictSame(told, [7], 'as soon as it is connected')
  const publishing = [publish('1'), publish('2', { ephemeral: true }), publish('3')]
  for (const one of publishing) one.then(published => { told.push(published) })
  await turns(1)
  sent[0]!.resolve({ epoch: 9, first: 4 })
  await Promise.all(publishing)
  t.strictSame(told, [7, 9, { seq: 4, delivered: 0 }, { seq: null, delivered: 0 }, { seq: 5, delivered: 0 }])
  await appender.close()
})
