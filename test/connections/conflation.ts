import t from 'tap'
import { EventPriority } from '../../lib/index.js'
import { block, serve, settle, texts } from '../helpers/app.js'
import { type Block } from '../helpers/sse.js'
import { turns } from '../helpers/wait.js'
import { backlog, PRIORITIES, random } from './reading.js'
import { blocksOf } from '../helpers/raw.js'
import type { TestStream } from '../../lib/testing/index.js'

t.test('a key conflates in the outbox and in catch-up, without a loss', async t => {
  for (const outboxBytes of [1 << 20, 2048]) {
    const service = await serve(t, { outboxBytes })
    const { app, join } = service
    const slow = await join('ada')
    const start = slow.stream.lastEventId
    const next = random(11)
    const newest: Record<string, number> = {}
    const blocks = await backlog(service, slow, async () => {
      for (let i = 1; i <= 80; i++) {
        const key = `k${next(4)}`
        newest[key] = i
        await app.sse.broadcastEvent({ event: 'x', data: { key, i, padding: 'x'.repeat(60) }, key, priority: PRIORITIES[Number(key[1])]! })
        if (i % 10 === 0) {
          await app.sse.broadcastEvent({ event: 'plain', data: i })
          await turns(1)
        }
      }
    })
    const values = (list: Block[]) => {
      const last: Record<string, number> = {}
      for (const { data, event } of list) {
        if (event !== 'x') continue
        const { key, i } = JSON.parse(data!) as { key: string, i: number }
        if (i <= (last[key] ?? 0)) t.fail(`${i} after ${last[key]}`)
        last[key] = i
      }
      return last
    }
    t.strictSame(values(blocks), newest, 'the newest of each')
    t.equal(blocks.filter(({ event }) => event === 'plain').length, 8, 'without a key nothing is replaced')
    if (outboxBytes === 1 << 20) t.equal(blocks.filter(({ event }) => event === 'x').length, 4, 'and nothing else')
    let place = start
    for (const [k, block] of [null, ...blocks].entries()) {
      if (block?.id != null) place = block.id
      const { stream } = await join('ada', [], { cursor: place })
      await settle(service, stream)
      t.strictSame({ ...values(blocks.slice(0, k)), ...values(blocksOf(stream.text)) }, newest, `cut after frame ${k}`)
      await stream.close()
    }
  }

  await t.test('a logged event is not lost to an ephemeral one of its key', async t => {
    const service = await serve(t)
    const slow = await service.join('ada')
    await block(slow)
    const start = slow.stream.lastEventId
    await service.app.sse.broadcastEvent({ event: 'x', data: 'logged', key: 'k' })
    await service.app.sse.broadcastEvent({ event: 'x', data: 'ephemeral', key: 'k' }, { ephemeral: true })
    await service.app.sse.broadcastEvent({ event: 'y', data: 1, priority: EventPriority.HIGH })
    slow.stream.thaw()
    const y = await slow.stream.collect(1, 'y')
    const { stream } = await service.join('ada', [], { cursor: y[0]!.id! })
    await settle(service, stream)
    t.strictSame(texts(stream), ['logged'], 'cut before it came, it comes')
    t.not(y[0]!.id, start)
  })

  await t.test('an older event that is caught up with does not replace a newer one that waits', async t => {
    const service = await serve(t, { outboxBytes: 2048 })
    const { app, join } = service
    const slow = await join('ada')
    await block(slow)
    // The lane of low priority leaves for the log with the older event; the newer waits in another lane.
    await app.sse.broadcastEvent({ event: 'x', data: 'older', key: 'k', priority: EventPriority.LOW })
    for (let i = 0; i < 30; i++) await app.sse.broadcastEvent({ event: 'bulk', data: 'x'.repeat(200), priority: EventPriority.LOW })
    await app.sse.broadcastEvent({ event: 'x', data: 'newer', key: 'k', priority: EventPriority.CRITICAL })
    slow.stream.thaw()
    await settle(service, slow.stream)
    t.ok(texts(slow.stream).includes('newer'))
    t.equal(slow.stream.named('bulk').length, 30)
    const again = await join('ada', [], { cursor: blocksOf(slow.stream.text).find(({ id }) => id !== null)!.id! })
    await settle(service, again.stream)
    t.ok(texts(again.stream).includes('newer'))
  })
})

t.test('a client never sees an old value of a key after a newer one', async t => {
  const service = await serve(t, { outboxBytes: 4096 })
  const slow = await service.join('ada')
  const publish = (data: string, priority: EventPriority, key?: string) => service.app.sse.broadcastEvent({ event: 'x', data, priority, ...(key !== undefined && { key }) })
  const start = slow.stream.lastEventId
  await block(slow)
  await publish('old', EventPriority.LOW, 'price')
  for (let i = 0; i < 12; i++) await publish('x'.repeat(500), EventPriority.NORMAL)
  await publish('new', EventPriority.HIGH, 'price')
  slow.stream.thaw()
  await settle(service, slow.stream)
  const values = (stream: TestStream) => texts(stream).filter(text => text!.length < 10)
  t.strictSame(values(slow.stream), ['new'])
  for (const { id } of [{ id: start }, ...blocksOf(slow.stream.text)]) {
    if (id === null) continue
    const { stream } = await service.join('ada', [], { cursor: id })
    await settle(service, stream)
    t.notOk(values(stream).includes('old'), `from ${id}`)
    await stream.close()
  }
})
