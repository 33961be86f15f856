import t from 'tap'
import { type BroadcastOptions } from '../../lib/index.js'
import { serve, type Service } from '../helpers/app.js'
import { until } from '../helpers/wait.js'

// Who may hear what, now: at delivery, at replay, after a right was given or taken.

const publish = ({ app }: Service, data: string, options: BroadcastOptions = {}) => app.sse.broadcastEvent({ event: 'x', data }, options)

// --- What a client may choose ---

t.test('subscriptions chosen by a client', async t => {
  const asked: string[] = []
  const service = await serve(t, {
    path: '/events',
    clientSubscriptions: 'patterns',
    authorizeSubscription: ({ subscriptionId }) => {
      asked.push(subscriptionId)
      // As careless as an application may be.
      return subscriptionId.startsWith('room:')
    }
  })
  const { app, open } = service
  const encode = encodeURIComponent
  const cases: [what: string, query: string, status: number][] = [
    ['one', 'subscription=room:1', 200],
    ['a list', 'subscription=room:1&subscription=room:2&subscription=room:1', 200],
    ['a comma is part of a name', 'subscription=room:1,room:2', 200],
    ['encoded once, as it should be', `subscription=${encode('room:größe')}`, 200],
    ['another script', `subscription=${encode('room:чат')}`, 200],
    ['a pattern', 'subscription=room:**', 200],
    ['unknown', 'subscription=vault:1', 403],
    ['one of them unknown', 'subscription=room:1&subscription=vault:1', 403],
    ['all', 'subscription=**', 403],
    ['empty', 'subscription=', 400],
    ['empty segments', 'subscription=room::1', 400],
    ['empty at the end', 'subscription=room:', 400],
    ['over-long', `subscription=room:${'x'.repeat(508)}`, 400],
    ['a 4 KB pattern', `subscription=room:${'*:'.repeat(2046)}*`, 400],
    ['a 4 KB pattern with its end', `subscription=room:${'a:'.repeat(2046)}**`, 400],
    ['too many segments', `subscription=room${':a'.repeat(32)}`, 400],
    ['a wildcard in a word', 'subscription=room:a*', 400],
    ['** in the middle', 'subscription=room:**:a', 400],
    ['encoded twice', `subscription=${encode(encode('room:a/b'))}`, 400],
    ['an encoded colon, twice', 'subscription=room:1%253A2', 400],
    ['NUL', 'subscription=room:%00', 400],
    ['CR LF', 'subscription=room:%0d%0aid:1', 400],
    ['bytes that are no text', 'subscription=room:%ff', 400],
    ['a lone surrogate', 'subscription=room:%ed%a0%80', 400],
    ['a space', 'subscription=room:a+b', 400],
    ['no-break space', 'subscription=room:%c2%a0', 400],
    ['zero width', `subscription=${encode('room:a\u200bb')}`, 400],
    ['written from right to left', `subscription=${encode('room:\u202eb')}`, 400],
    ['a filler that shows nothing', `subscription=${encode('room:\u3164')}`, 400],
    ['a variation selector', `subscription=${encode('room:a\ufe0f')}`, 400],
    ['not composed', `subscription=${encode('room:u\u0308')}`, 400],
    ['a wide letter', `subscription=${encode('room:\uff41')}`, 400],
    ['a wide colon', `subscription=${encode('room:a\uff1ab')}`, 400],
    ['a mathematical letter', `subscription=${encode('room:\u{1d41a}')}`, 400],
    ['a Cyrillic а among Latin letters', `subscription=${encode('room:p\u0430yments')}`, 400],
    ['a Greek ο among Latin letters', `subscription=${encode('room:r\u03bfot')}`, 400]
  ]
  for (const [what, query, status] of cases) {
    asked.length = 0
    const stream = await open(`/events?${query}`)
    t.equal(stream.status, status, what)
    if (status === 400) {
      t.equal(stream.body.code, 'SSE_ERR_INVALID_SUBSCRIPTION', what)
      t.strictSame(asked, [], `${what}: nobody is asked`)
    }
    await stream.close()
  }
  await until(() => app.sse.connectionCount === 0)
  const many = await open(`/events?${Array.from({ length: 129 }, (_, i) => `subscription=room:${i}`).join('&')}`)
  t.match([many.status, many.body.code], [400, 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS'])
  t.match((await open('/events?subscription[]=room:1&subscriptions=room:2')).body, { statusCode: 400, code: 'SSE_ERR_INVALID_SUBSCRIPTION' }, 'other names choose nothing')

  await t.test('matching is linear: the worst that fits is answered at once', async t => {
    const worst = `room:${'*:'.repeat(30)}b`
    t.equal((await open(`/events?subscription=${worst}`)).status, 200)
    t.equal((await open(`/events?subscription=room:${'*:'.repeat(30)}*`)).status, 200)
    const before = process.cpuUsage()
    for (let n = 0; n < 200; n++) await publish(service, '', { subscriptionIds: [`room:${'a:'.repeat(30)}${n}`] })
    const { user } = process.cpuUsage(before)
    // Backtracking over 31 segments would take hours.
    t.ok(user < 5_000_000, `${user} µs`)
  })
})
