import t from 'tap'
import { decodeNodeMessage, encodeNodeMessage, type NodeMessage, type Report } from '../../lib/cluster/node-message.js'

// What nodes of any version may say to each other: everything else is ignored.

const report: Report = { nodeId: 'x', name: 'one', startedAt: 1.5, connections: 1, users: 2, subscriptions: 3, status: 'degraded', reason: 'Redis is away', everyMs: 60_000, present: 4, left: { epoch: 'one', command: 5, into: 'two' } }
const longest = 'x'.repeat(64)

/** Messages as they come from any node. */
const MESSAGES: Record<string, NodeMessage> = {
  hello: { kind: 'hello', from: 'x', report },
  beat: { kind: 'beat', from: longest, report: { ...report, nodeId: longest } },
  'a report of an older version': { kind: 'beat', from: 'x', report: { nodeId: 'x', name: null, startedAt: 0, connections: 0, users: 0, subscriptions: 0, status: 'up', everyMs: 1, present: null, left: { epoch: '', command: 0 } } },
  bye: { kind: 'bye', from: 'x' },
  command: { kind: 'command', from: 'x', id: 0, operation: 'later', args: [1, null, {}] },
  'a repeated command': { kind: 'command', from: 'x', id: 1, operation: 'presence', args: [], to: ['y', longest] },
  answer: { kind: 'answer', from: 'x', to: 'y', id: 0, value: null },
  'an error': { kind: 'answer', from: 'x', to: 'y', id: 1, error: { code: 'SSE_ERR_COMMAND_FAILED', message: '' } },
  presence: { kind: 'presence', from: 'x', changes: [['room:1', 'ada', true], ['room:2', '', false]] },
  present: { kind: 'present', from: 'x', first: true, more: false, entries: [['room:1', 'ada']] },
  leaving: { kind: 'leaving', from: 'x', entries: [['room:1', 'ada', 0.5]] }
}

t.test('what one node says another understands, with properties of later versions too', t => {
  for (const [name, message] of Object.entries(MESSAGES)) {
    t.strictSame(decodeNodeMessage(encodeNodeMessage(message)), message, name)
    t.match(decodeNodeMessage(JSON.stringify({ ...message, later: 1 })), message, name)
  }
  t.end()
})

t.test('a message that lacks something, or has a value out of range, is none', t => {
  const none = (message: object, why: string) => t.equal(decodeNodeMessage(JSON.stringify(message)), null, why)
  const optional = ['to of a repeated command', 'value of answer', 'error of an error', 'into', 'reason', 'left']
  for (const [name, message] of Object.entries(MESSAGES)) {
    for (const key of Object.keys(message)) {
      if (!optional.includes(`${key} of ${name}`)) none({ ...message, [key]: undefined }, `${name} without ${key}`)
      if (key !== 'value') none({ ...message, [key]: Symbol.iterator in Object(message[key as 'from']) ? 7 : 'other' }, `${name} with another ${key}`)
    }
    none({ ...message, from: '' }, `${name}: nobody`)
    none({ ...message, from: `${longest}x` }, `${name}: a name that is too long`)
  }
  for (const key of Object.keys(report)) if (!optional.includes(key)) none({ ...MESSAGES['hello'], report: { ...report, [key]: undefined } }, `a report without ${key}`)
  for (const [key, ...values] of [['everyMs', 0, 60_001, 1.5, '1'], ['connections', -1, 0.5], ['users', -1], ['subscriptions', -1], ['present', -1, 0.5, 'all'], ['status', 'down'], ['name', 7], ['nodeId', '', `${longest}x`], ['reason', 7], ['startedAt', 'now'], ['left', {}, { epoch: 'one' }, { epoch: 'one', command: -1 }, { epoch: 'one', command: 1, into: 2 }]] as const) {
    for (const value of values) none({ ...MESSAGES['beat'], report: { ...report, [key]: value } }, `${key}: ${JSON.stringify(value)}`)
  }
  for (const id of [-1, 0.5, '1']) for (const name of ['command', 'answer']) none({ ...MESSAGES[name], id }, `${name} ${id}`)
  for (const changes of [[['room:1', 'ada']], [['room:1', 'ada', 1]], [[7, 'ada', true]], [['room:1', null, true]], [['room:1', 'ada', true, true]]]) none({ ...MESSAGES['presence'], changes }, JSON.stringify(changes))
  for (const entries of [[['room:1']], [['room:1', 7]]]) none({ ...MESSAGES['present'], entries }, JSON.stringify(entries))
  for (const entries of [[['room:1', 'ada']], [['room:1', 'ada', '5']]]) none({ ...MESSAGES['leaving'], entries }, JSON.stringify(entries))
  for (const error of [{}, { code: 'x' }, { code: 7, message: '' }]) none({ ...MESSAGES['an error'], error }, JSON.stringify(error))
  none({ ...MESSAGES['a repeated command'], to: [''] }, 'to nobody')
  for (const text of ['', '{', 'null', '7', '"bye"', '[]']) t.equal(decodeNodeMessage(text), null, text)
  t.end()
})
