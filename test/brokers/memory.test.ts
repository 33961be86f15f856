import { test } from 'tap'
import type { OutgoingMessage } from '../../lib/events/message.js'
import { memoryBroker } from '../../lib/log/memory-broker.js'
import { EventPriority } from '../../lib/events/event-rules.js'
import { brokerContract } from '../../lib/testing/index.js'

brokerContract(test, 'memory', memoryBroker)

test('a delivery that throws against its promise rejects its own publish, and no other', async t => {
  const broker = memoryBroker()
  const message = (data: string): OutgoingMessage => ({ event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false })
  const publish = async (data: string) => await broker.publish(message(data))
  const delivered: string[] = []
  const inner: Promise<unknown>[] = []
  await broker.open({
    deliver: ({ data }) => {
      delivered.push(data)
      if (data === 'outer') inner.push(publish('first'), publish('second'))
      if (data !== 'second') throw new Error(`${data} fails`)
      return 7
    },
    gap: () => {},
    state: () => {}
  }, { maxEvents: 10, maxAgeMs: 60_000, maxBytes: 1_000 })
  await t.rejects(publish('outer'), { message: 'outer fails' })
  const [first, second] = await Promise.allSettled(inner)
  t.match(first, { status: 'rejected', reason: { message: 'first fails' } })
  t.strictSame(second, { status: 'fulfilled', value: { seq: 3, delivered: 7 } })
  t.strictSame(delivered, ['outer', 'first', 'second'])
})
