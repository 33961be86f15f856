import t from 'tap'
import { TimingWheel } from '../../lib/connections/timing-wheel.js'
import { ClockJump } from '../../lib/connections/clock-jump.js'
import { type BroadcastOptions, type SSEOptions } from '../../lib/index.js'
import { testClock } from '../../lib/testing/index.js'
import { kClock, systemClock, type Clock } from '../../lib/util/clock.js'
import { payloads, serve, settle, type Service } from '../helpers/app.js'
import { turns } from '../helpers/wait.js'

// Who may hear what, now: at delivery, at replay, after a right was given or taken.

const publish = ({ app }: Service, data: string, options: BroadcastOptions = {}) => app.sse.broadcastEvent({ event: 'x', data }, options)

/** The clock of the machine, whose wall clock is set. */
const clockOf = (wall: () => number): SSEOptions => ({ [kClock]: { ...systemClock, wall } satisfies Clock }) as SSEOptions

t.test('a stream ends within half a second of its rights, at the intervals of production', async t => {
  const clock = testClock()
  let expiresAt = 0
  const service = await serve(t, { authHandler: ({ query }) => ({ userId: query['user'] as string, expiresAt }), ...clock.options })
  for (const after of [300, 700, 1111]) {
    expiresAt = clock.now + after
    const { stream, connection } = await service.join('ada', ['a'])
    await clock.advance(after - 1)
    t.equal(connection.closeReason, null, 'not before')
    await clock.advance(501)
    t.equal(connection.closeReason, 'auth-expired')
    await stream.ended
    t.strictSame(payloads(stream, 'sse:close'), [{ reason: 'auth-expired', reconnect: true }])
  }
})

t.test('a stream ends with its rights when the wall clock runs ahead of timers, as after a suspend', async t => {
  const { now } = Date
  let ahead = 0
  const ends: Record<string, { expiresAt?: number }> = { minute: { expiresAt: now() + 60_000 }, day: { expiresAt: now() + 86_400_000 }, never: {} }
  const service = await serve(t, { authHandler: ({ query }) => ({ userId: query['user'] as string, ...ends[query['user'] as string] }), ...clockOf(() => now() + ahead) })
  const [minute, day, never] = [await service.join('minute', ['a']), await service.join('day', ['a']), await service.join('never', ['a'])]
  ahead = -3_600_000
  await turns(3)
  // The clock may have been looked at in between, or not.
  ahead = 3_600_000
  await minute.stream.ended
  t.strictSame(payloads(minute.stream, 'sse:close'), [{ reason: 'auth-expired', reconnect: true }])
  t.match(await publish(service, 'later', { subscriptionIds: ['a'] }), { delivered: 2 })
  await settle(service, day.stream, never.stream)
  t.ok(day.connection.isConnected && never.connection.isConnected)
  ahead += 86_400_000
  await day.stream.ended
  t.equal(day.connection.closeReason, 'auth-expired')
  t.ok(never.connection.isConnected)
})

t.test('a small difference of the clocks adds up', async t => {
  let wall = 1_000_000
  const steps: number[] = []
  const clock = { ...systemClock, monotonic: () => 0, wall: () => wall }
  const watch = new ClockJump(clock, new TimingWheel(10, clock), () => { steps.push(wall) })
  for (const by of [0, 60, 60, -500, 60, 60, 60]) {
    wall += by
    watch.onTime(0)
  }
  t.strictSame(steps, [1_000_120, 999_740], 'and one that was set back is ahead as soon as it gains')
  t.end()
})

t.test('rights that end on the way in open no stream', async t => {
  const clock = testClock()
  let expiresAt = 0
  let asked = 0
  const service = await serve(t, {
    authHandler: () => ({ userId: 'ada', expiresAt }),
    authorizeSubscription: async () => {
      asked++
      await clock.advance(200)
      return true
    },
    ...clock.options
  }, {}, app => {
    app.get('/slow', { sse: { requireAuthentication: true } }, async (_request, reply) => {
      await clock.advance(200)
      await reply.sse()
    })
  })
  expiresAt = clock.now + 200
  const open = await service.open('/sse?join=none')
  await clock.advance(500)
  await open.ended
  t.equal(open.status, 200, 'nothing was asked for')
  expiresAt = clock.now + 200
  await t.rejects(service.join('ada', ['a']), { code: 'SSE_ERR_TEST_REFUSED', statusCode: 401 }, 'while authorizeSubscription was asked')
  t.equal(asked, 1)
  expiresAt = clock.now + 200
  t.match(await service.open('/slow'), { status: 401 }, 'while the handler was at work: not an anonymous stream')
  t.equal(service.app.sse.connectionCount, 0)
})
