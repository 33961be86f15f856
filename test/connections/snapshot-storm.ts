import t from 'tap'
import { testClock } from '../../lib/testing/index.js'
import type { SnapshotOptions } from '../../lib/index.js'
import { payloads, serve, type Joined, type Service } from '../helpers/app.js'
import { turns } from '../helpers/wait.js'

// Many clients that need a state at once. CLIENTS=1000 for more.
const CLIENTS = Number(process.env['CLIENTS'] ?? 60)

const crowd = (service: Service, snapshot: SnapshotOptions) => Promise.all(Array.from({ length: CLIENTS }, (_, i) => service.join(`user-${i}`, ['a'], { snapshot })))

/** A snapshot whose loads end only when all clients have come. */
function measured (key?: string) {
  const figures = { calls: 0, running: 0, most: 0 }
  let begin = (): void => {}
  const begun = new Promise<void>(resolve => { begin = resolve })
  const load = async () => {
    figures.calls++
    figures.most = Math.max(figures.most, ++figures.running)
    await begun
    await turns(1)
    figures.running--
    return { event: 'state', data: figures.calls }
  }
  return { figures, begin, snapshot: { load, timeoutMs: 120_000, ...(key !== undefined && { key }) } as SnapshotOptions }
}

t.test(`${CLIENTS} clients need a state at once`, async t => {
  for (const key of [undefined, 'all']) {
    const service = await serve(t)
    const { figures, begin, snapshot } = measured(key)
    const joined = await crowd(service, snapshot)
    const publish = (data: number) => service.app.sse.broadcastEvent({ event: 'x', data: [data, 'x'.repeat(1_000)] }, { subscriptionIds: ['a'] })
    for (let n = 0; n < 100; n++) await publish(n)
    t.equal(service.app.sse.stats().queuedBytes, 0, 'they hold no events meanwhile')
    begin()
    for (const { stream } of joined) await stream.next('state')
    t.strictSame(figures, key === undefined ? { calls: CLIENTS, running: 0, most: 16 } : { calls: 1, running: 0, most: 1 }, `key ${key}`)
    await publish(100)
    for (const { stream } of joined) {
      await stream.until(() => payloads(stream, 'x').at(-1)?.[0] === 100)
      const [state, ...later] = stream.events
      t.equal(state!.event, 'state')
      const { length } = later
      t.strictSame(later.map(({ json }) => (json as [number])[0]), Array.from({ length }, (_, n) => 101 - length + n))
    }
    await Promise.all(joined.map(({ stream }) => stream.close()))
  }
})

t.test('a load that always fails is called less and less often', async t => {
  const clock = testClock()
  const service = await serve(t, clock.options)
  let calls = 0
  const snapshot: SnapshotOptions = {
    load () {
      calls++
      throw new Error('no database')
    }
  }
  const due = new Map<number, { at: number, cursor?: string }>(Array.from({ length: CLIENTS }, (_, i) => [i, { at: clock.now }]))
  const end = clock.now + 60_000
  for (; clock.now < end; await clock.advance(500)) {
    const open: [number, Joined][] = []
    for (const [i, { at, cursor }] of due) if (at <= clock.now) open.push([i, await service.join(`user-${i}`, [], { snapshot, ...(cursor !== undefined && { cursor }) })])
    for (const [i, { stream }] of open) {
      await stream.until(() => !stream.isOpen)
      due.set(i, { at: clock.now + stream.retryMs!, cursor: stream.lastEventId })
    }
  }
  const most = CLIENTS + CLIENTS * Math.log2(60 / 3)
  t.ok(calls <= most, `${calls} calls in the first minute, at most ${Math.floor(most)}`)
  t.ok(calls >= 3 * CLIENTS, 'and yet each client tries again')
  t.comment(`${calls} calls, allowed ${Math.floor(most)}`)
})
