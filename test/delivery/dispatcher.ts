import t from 'tap'
import { Telemetry } from '../../lib/diagnostics/telemetry.js'
import { Dispatcher, type FrameReceiver } from '../../lib/delivery/dispatcher.js'
import type { Frame } from '../../lib/delivery/frame.js'
import { Publisher } from '../../lib/delivery/publisher.js'
import { Closed } from '../../lib/errors.js'
import type { Message } from '../../lib/events/message.js'
import { EventPriority } from '../../lib/index.js'
import type { EventLog } from '../../lib/log/event-log.js'
import type { Audience } from '../../lib/subscriptions/audience.js'

t.test('a message is encoded once for all who receive it, and counted for those who took it', async t => {
  const received: Frame[] = []
  const receivers = [true, false, true].map(takes => ({
    receive: (frame: Frame) => {
      received.push(frame)
      return takes
    }
  })) as FrameReceiver[]
  let selected = receivers
  const dispatcher = new Dispatcher({ select: () => selected } as unknown as Audience<FrameReceiver>)
  const message: Message = { event: 'x', data: '1', priority: EventPriority.HIGH, target: {}, ephemeral: true, seq: 0 }
  t.equal(dispatcher.deliver(message, 'e', true), 2)
  t.equal(new Set(received).size, 1)
  t.match(received[0], { head: '', text: 'event: x\ndata: 1\n\n', fromLog: true, priority: EventPriority.HIGH })
  t.strictSame([dispatcher.messages, dispatcher.deliveries], [1, 2])
  received.length = 0
  dispatcher.announce({ event: 'sse:join', data: '{}', target: {} }, 'e')
  t.match(received[0], { head: '', fromLog: false, priority: EventPriority.NORMAL, seq: 0, key: null })
  selected = []
  t.equal(dispatcher.deliver(message, 'e', true), 0)
  t.strictSame([dispatcher.messages, dispatcher.deliveries], [3, 4])
})

t.test('where an event goes: to the log, or at once but never synchronously to the connections of this node', async t => {
  for (const isOpen of [true, false]) {
    let opened = 0
    let closed = false
    const appended: Message[] = []
    const delivered: unknown[] = []
    let answer: unknown = { seq: 36, delivered: 4 }
    const log = {
      isOpen,
      shared: true,
      epoch: 'e',
      open: async () => { opened++ },
      assertOpen: () => { if (closed) throw new Closed() },
      append: (message: Message) => {
        appended.push(message)
        return answer
      }
    }
    const publisher = new Publisher({ maxEventBytes: 1_000 }, log as unknown as EventLog, {
      deliver: (message: Message, epoch: string, fromLog: boolean) => {
        delivered.push([message.data, message.ephemeral, epoch, fromLog])
        return 3
      }
    } as unknown as Dispatcher<FrameReceiver>, new Telemetry(null))
    const event = { event: 'x', data: 'd' }
    t.strictSame(await publisher.publish(event, {}), { id: 'e.10', delivered: 4 })
    t.equal(opened, isOpen ? 0 : 1, 'an open log is not waited for')
    answer = Promise.resolve({ seq: null, delivered: 0 })
    t.strictSame(await publisher.publish(event, { ephemeral: true }), { id: null, delivered: 0 })
    t.strictSame(appended.map(({ ephemeral }) => ephemeral), [false, true])

    const publishing = publisher.publish(event, { local: true, filter: () => true })
    t.strictSame(delivered, [], 'an event that is published during a delivery comes after it')
    t.strictSame(await publishing, { id: null, delivered: 3 })
    t.strictSame(delivered, [['d', true, 'e', false]])
    await t.rejects(publisher.publish(event, { filter: () => true }), { code: 'SSE_ERR_FILTER_NOT_SHARED' })
    closed = true
    await t.rejects(publisher.publish(event, { local: true }), { code: 'SSE_ERR_CLOSED' })
    t.strictSame([delivered.length, appended.length], [1, 2])
  }
})
