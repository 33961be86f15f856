import t from 'tap'
import type { Diagnostics } from '../../lib/index.js'
import { CHANNEL_NAMES } from '../../lib/diagnostics/channels.js'
import { Telemetry } from '../../lib/diagnostics/telemetry.js'
import { BrokerUnavailable } from '../../lib/errors.js'
import { EventPriority } from '../../lib/events/event-rules.js'
import { Reports } from '../helpers/diagnostics.js'

// What each call counts, and what it reports.

const stream = { clientId: 'c', managed: true, ageMs: 12, stats: () => ({ sentEvents: 3, droppedEvents: 4 }) }
const message = { event: 'x', data: 'secret', priority: EventPriority.HIGH, target: {}, ephemeral: true }
const ofStream = { nodeId: 'n', clientId: 'c' }

type Call = [what: string, call: (telemetry: Telemetry) => void, counted: object, reported: Partial<Record<keyof Diagnostics, object>>]

const CALLS: Call[] = [
  ['admit', telemetry => telemetry.onAdmit(), { opened: 1 }, {}],
  ['open', telemetry => telemetry.onOpen(stream), {}, { open: { ...ofStream, managed: true, durationMs: 12 } }],
  ['close', telemetry => telemetry.onClose(stream, 'kicked', false), { closed: { kicked: 1 } }, { close: { ...ofStream, managed: true, reason: 'kicked', durationMs: 12, sentEvents: 3, droppedEvents: 4 } }],
  ['refuse', telemetry => telemetry.onRefuse({}, new BrokerUnavailable('x')), { refused: { SSE_ERR_BROKER_UNAVAILABLE: 1 } }, { refuse: { nodeId: 'n', code: 'SSE_ERR_BROKER_UNAVAILABLE' } }],
  ['refuse, of the application', telemetry => telemetry.onRefuse({}, Object.assign(new Error('x'), { code: 'E_OWN' })), { refused: { other: 1 } }, { refuse: { nodeId: 'n', code: 'other' } }],
  ...(['fresh', 'resumed', 'gap'] as const).map((result): Call => [result, telemetry => telemetry.onResume('c', result), { resumes: { [result]: 1 } }, { resume: { ...ofStream, result } }]),
  ...(['malformed', 'epoch', 'unknown', 'trimmed', 'limit'] as const).map((reason): Call => [reason, telemetry => telemetry.onGap('c', reason), { gaps: { [reason]: 1 } }, { gap: { ...ofStream, reason } }]),
  ['a gap of a broker of the application', telemetry => telemetry.onGap('c', 'lost' as never), { gaps: { unknown: 1 } }, { gap: { ...ofStream, reason: 'lost' } }],
  ['replay', telemetry => telemetry.onReplay('c', 5, 6, 7, 'gap'), {}, { replay: { ...ofStream, events: 5, bytes: 6, durationMs: 7, result: 'gap' } }],
  ['lag', telemetry => telemetry.onLag('c'), {}, { lag: ofStream }],
  ...(['outbox', 'memory'] as const).map((reason): Call => [reason, telemetry => telemetry.onDrop('c', reason), { dropped: { [reason]: 1 } }, { drop: { ...ofStream, reason } }]),
  ['publish', telemetry => telemetry.onPublish(message, 8, telemetry.startOfPublish()), { published: 1 }, { publish: { nodeId: 'n', event: 'x', ephemeral: true, priority: EventPriority.HIGH, delivered: 8, durationMs: Number, code: null } }],
  ['publish that failed', telemetry => telemetry.onPublish(message, 0, telemetry.startOfPublish(), new BrokerUnavailable('x')), {}, { publish: { nodeId: 'n', event: 'x', ephemeral: true, priority: EventPriority.HIGH, delivered: 0, durationMs: Number, code: 'SSE_ERR_BROKER_UNAVAILABLE' } }],
  ['publish that failed with something that is no error of this package', telemetry => telemetry.onPublish(message, 0, telemetry.startOfPublish(), 'text'), {}, { publish: { code: 'other' } }],
  ['deliver', telemetry => telemetry.onDeliver(9, 10), {}, { deliver: { nodeId: 'n', connections: 9, durationMs: 10 } }],
  ['run', telemetry => telemetry.onRunStart(), { runs: { running: 1 } }, { run: { nodeId: 'n', status: 'running', events: 0 } }],
  ['end of a run', telemetry => telemetry.onRunEnd('done', undefined, 11), { runs: { running: -1, done: 1 } }, { run: { nodeId: 'n', status: 'done', events: 11 } }],
  ['end of a run with a reason', telemetry => telemetry.onRunEnd('failed', 'limit', 11), { runs: { running: -1, failed: 1 } }, { run: { nodeId: 'n', status: 'failed', reason: 'limit', events: 11 } }],
  ['health', telemetry => telemetry.onHealth('up'), {}, { health: { nodeId: 'n', status: 'up' } }]
]

/** All counts. */
const counts = ({ opened, published, replayed, closed, refused, resumes, gaps, dropped, runs }: Telemetry) => ({ opened, published, replayed, closed: closed.read(), refused: refused.read(), resumes, gaps, dropped, runs })
const NONE = counts(new Telemetry('n'))
const plus = (more: object) => Object.fromEntries(Object.entries(NONE).map(([name, value]) => {
  const added = (more as Record<string, number | object>)[name]
  return [name, typeof value === 'number' ? added ?? value : { ...value, ...added as object }]
}))

t.test('without subscribers, everything is counted', async t => {
  for (const [what, call, counted] of CALLS) {
    const telemetry = new Telemetry('n')
    t.equal(telemetry.startOfPublish(), 0)
    t.equal(telemetry.timesDelivery, false)
    call(telemetry)
    t.same(counts(telemetry), plus(counted), what)
  }
})

t.test('with subscribers, each call is reported on its channel as well', async t => {
  for (const [what, call, counted, reported] of CALLS) {
    await t.test(what, async t => {
      const reports = new Reports(t, () => 'n')
      const telemetry = new Telemetry('n')
      t.equal(telemetry.timesDelivery, true)
      call(telemetry)
      t.same(counts(telemetry), plus(counted))
      t.match(reports.all, Object.entries(reported))
      t.equal(reports.all.length, Object.keys(reported).length)
      for (const [name, payload] of reports.all) if (name !== 'publish') t.same(payload, reported[name])
    })
  }
  t.same(new Set(CALLS.flatMap(([, , , reported]) => Object.keys(reported))), new Set(CHANNEL_NAMES), 'all channels')
})

t.test('a publish whose start was not timed is not reported, and a duration is that since its start', async t => {
  const telemetry = new Telemetry('n')
  const start = telemetry.startOfPublish()
  const reports = new Reports(t, () => 'n', ['publish'])
  telemetry.onPublish(message, 1, start)
  t.same(reports.all, [], 'its subscriber came later')
  const before = performance.now()
  telemetry.onPublish(message, 1, before - 1_000)
  const [{ durationMs }] = reports.of('publish') as [Diagnostics['publish']]
  t.ok(durationMs >= 1_000 && durationMs <= performance.now() - before + 1_000, `${durationMs}`)
  t.equal(telemetry.published, 2)
})

t.test('a response is refused once, and a status is reported when it changes', async t => {
  const telemetry = new Telemetry('n')
  const reports = new Reports(t, () => 'n', ['health', 'refuse'])
  const [one, other] = [{}, {}]
  for (const response of [one, one, other, one]) telemetry.onRefuse(response, new BrokerUnavailable('x'))
  t.same(telemetry.refused.read(), { SSE_ERR_BROKER_UNAVAILABLE: 2 })
  t.equal(reports.of('refuse').length, 2)
  for (const status of ['up', 'up', 'degraded', 'degraded', 'up'] as const) telemetry.onHealth(status)
  t.same(reports.of('health').map(({ status }) => status), ['up', 'degraded', 'up'])
})
