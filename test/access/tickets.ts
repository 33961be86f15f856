import type { FastifyReply, FastifyRequest } from 'fastify'
import { createHmac } from 'node:crypto'
import t from 'tap'
import { Tickets } from '../../lib/access/tickets.js'
import { redacting, redactUrl } from '../../lib/fastify/log-redaction.js'
import { memoryBroker, requestSerializer, type BroadcastOptions, type SSEOptions } from '../../lib/index.js'
import { testClock } from '../../lib/testing/index.js'
import { systemClock } from '../../lib/util/clock.js'
import { payloads, serve, type Service } from '../helpers/app.js'
import { until } from '../helpers/wait.js'
import type { TestStream } from '../../lib/testing/index.js'

// Who may hear what, now: at delivery, at replay, after a right was given or taken.

const publish = ({ app }: Service, data: string, options: BroadcastOptions = {}) => app.sse.broadcastEvent({ event: 'x', data }, options)

// --- Tickets, and what the log holds ---

const SECRET = 'thirty-two characters of a random generator'

t.test('tickets', async t => {
  const asked: string[] = []
  const options: SSEOptions = {
    path: '/events',
    clientSubscriptions: true,
    requireAuthentication: true,
    ticketSecret: SECRET,
    maxSubscriptionsPerConnection: 3,
    authorizeSubscription: ({ userId, subscriptionId }) => {
      asked.push(`${userId} ${subscriptionId}`)
      return subscriptionId === 'news'
    }
  }
  const clock = testClock()
  const service = await serve(t, { ...options, ...clock.options })
  const { app, open } = service
  const visit = (ticket: string, query = '', headers: Record<string, string> = {}) => open(`/events?ticket=${ticket}${query}`, { headers })
  const refused = (stream: TestStream, message: string) => t.strictSame([stream.status, stream.body.code], [401, 'SSE_ERR_INVALID_TICKET'], message)

  await t.test('names the user, the claims and the end of the rights, and grants its subscriptions', async t => {
    const expiresAt = clock.now + 60_000
    const ticket = app.sse.issueTicket({ userId: 'ada', claims: { role: 'admin' }, expiresAt, subscriptions: ['vault:**', 'news'] })
    const stream = await visit(ticket, '&subscription=news')
    const [connection] = app.sse.getConnectionsByUser('ada')
    t.match(connection, { userId: 'ada', claims: { role: 'admin' }, subscriptions: new Set(['vault:**', 'news']) })
    t.strictSame(asked, [], 'what the ticket grants is not asked about')
    await publish(service, 'secret', { subscriptionIds: ['vault:1'] })
    await stream.next('x')
    refused(await visit(ticket), 'used')
    await clock.advance(60_500)
    await stream.ended
    t.strictSame(payloads(stream, 'sse:close'), [{ reason: 'auth-expired', reconnect: true }])
    const more = await visit(app.sse.issueTicket({ userId: 'ada', subscriptions: ['vault:**'] }), '&subscription=other')
    t.strictSame([more.status, asked], [403, ['ada other']], 'the rest is')
    t.equal((await visit(app.sse.issueTicket({ userId: 'ada', subscriptions: ['a', 'b', 'c'] }), '&subscription=news')).status, 400, 'all count')
    const held = await visit(app.sse.issueTicket({ userId: 'grace', expiresAt: null, subscriptions: ['vault:**'] }))
    t.equal(await app.sse.reauthorize('grace'), 1, 'reauthorize asks about them too')
    await held.close()
  })

  await t.test('a stream of its own source holds nothing that could be taken away, whatever the ticket grants', async t => {
    let end: () => void = () => {}
    const { app, open } = await serve(t, { ticketSecret: SECRET, authorizeSubscription: () => false }, {}, app => {
      app.get('/source', { sse: true }, (_request: FastifyRequest, reply: FastifyReply) => reply.sse((async function * () {
        yield 'first'
        await new Promise<void>(resolve => { end = resolve })
      })()))
    })
    const stream = await open(`/source?ticket=${app.sse.issueTicket({ userId: 'ada', subscriptions: ['room:1'] })}`)
    await stream.next('message')
    t.equal(await app.sse.revokeSubscription('ada', 'room:1'), 0)
    t.equal(await app.sse.reauthorize('ada'), 0)
    end()
    await stream.ended
    t.strictSame(stream.events.map(({ event }) => event), ['message', 'sse:close'])
  })

  await t.test('one of many that show it at once gets in', async t => {
    const ticket = app.sse.issueTicket({ userId: 'ada' })
    const clients = await Promise.all(Array.from({ length: 30 }, () => visit(ticket)))
    t.equal(clients.filter(({ isStream }) => isStream).length, 1)
    t.equal(clients.filter(({ status }) => status === 401).length, 29)
  })

  await t.test('it speaks for nobody else: not for a cookie beside it, not from another site', async t => {
    const stream = await open(`/sse?user=grace&ticket=${app.sse.issueTicket({ userId: 'ada' })}`)
    t.ok(stream.isStream)
    t.equal(app.sse.getConnectionsByUser('grace').length, 0)
    refused(await open('/sse?user=grace&ticket=nonsense'), 'a broken ticket is not overlooked')
    const ticket = app.sse.issueTicket({ userId: 'ada' })
    t.equal((await visit(ticket, '', { 'sec-fetch-site': 'cross-site' })).status, 403)
    t.ok((await visit(ticket)).isStream, 'and is not used up by that')
  })

  await t.test('forged, cut, of another key, too old', async t => {
    const ticket = app.sse.issueTicket({ userId: 'ada' })
    const [text, signature] = ticket.split('.') as [string, string]
    const content = JSON.parse(Buffer.from(text, 'base64url').toString())
    const forged = Buffer.from(JSON.stringify({ ...content, user: 'root' })).toString('base64url')
    const other = await serve(t, { ...options, ticketSecret: `${SECRET}!` })
    for (const [what, bad] of [
      ['another user', `${forged}.${signature}`], ['no signature', text], ['an empty one', `${text}.`], ['a cut one', ticket.slice(0, -1)], ['a longer one', `${ticket}A`], ['another key', other.app.sse.issueTicket({ userId: 'ada' })],
      ['nothing', ''], ['too long', 'x'.repeat(5000)], ['another alphabet', encodeURIComponent(`${text}.${Buffer.from(signature, 'base64url').toString('base64')}`)], ['NUL', '%00'], ['a flipped letter', `${text}.${signature[0] === 'A' ? 'B' : 'A'}${signature.slice(1)}`]
    ] as const) refused(await visit(bad), what)
    t.ok((await visit(ticket)).isStream, 'the true one is still good')

    const old = app.sse.issueTicket({ userId: 'ada', ttlMs: 5_000 })
    const young = app.sse.issueTicket({ userId: 'ada' })
    await clock.advance(5_000)
    refused(await visit(old), 'too old')
    t.ok((await visit(young)).isStream)
    refused(await open(`/sse?user=grace&ticket=${app.sse.issueTicket({ userId: 'ada', expiresAt: clock.now })}`), 'rights that have ended: nor is it anybody else\'s')
  })

  await t.test('a used ticket is remembered for a minute longer than it is good: the clocks of nodes may differ', async t => {
    const claims: number[] = []
    const tickets = new Tickets({ clock: systemClock, ticketSecret: SECRET, ticketTtlMs: 30_000, maxSubscriptionsPerConnection: 1 }, {
      epoch: 'one',
      claim: async (_key, ttlMs) => {
        claims.push(ttlMs)
        return true
      }
    })
    const ticket = tickets.issue({ userId: 'ada' })
    await tickets.redeem(ticket)
    await tickets.redeem(tickets.issue({ userId: 'ada', ttlMs: 600_000 }))
    t.ok(claims[0]! > 89_000 && claims[0]! <= 90_000, `${claims[0]} ms`)
    t.ok(claims[1]! > 659_000 && claims[1]! <= 660_000, `${claims[1]} ms`)
    for (const ttlMs of [1_000, 600_000]) t.doesNotThrow(() => tickets.issue({ userId: 'ada', ttlMs }))
    for (const ttlMs of [999, 600_001]) t.throws(() => tickets.issue({ userId: 'ada', ttlMs }), { code: 'SSE_ERR_TICKET_NOT_ISSUED' })
    // As long as a URL can be.
    const lengths: number[] = []
    let longest = ''
    t.throws(() => {
      for (let n = 2_900; ; n++) lengths.push((longest = tickets.issue({ userId: 'ada', claims: 'x'.repeat(n) })).length)
    }, { code: 'SSE_ERR_TICKET_NOT_ISSUED', message: 'it would have 4098 characters, at most 4096 fit into a URL' })
    t.equal(lengths.at(-1), 4_096)
    t.equal((await tickets.redeem(longest)).userId, 'ada')
    const longer = Buffer.from(JSON.stringify({ id: 'x'.repeat(4_000), log: 'one', user: 'ada', until: Date.now() + 10_000 })).toString('base64url')
    await t.rejects(tickets.redeem(`${longer}.${createHmac('sha256', SECRET).update('fastify-sse-manager ticket 1\n').update(longer).digest('base64url')}`), { code: 'SSE_ERR_INVALID_TICKET' })
    // What the application signs with the same secret for another purpose is no ticket.
    const [text] = ticket.split('.') as [string]
    await t.rejects(tickets.redeem(`${text}.${createHmac('sha256', SECRET).update(text).digest('base64url')}`), { code: 'SSE_ERR_INVALID_TICKET' })
  })

  await t.test('it opens a stream, and nothing else: it makes no new ticket', async t => {
    const { app, open } = await serve(t, options, {}, app => {
      app.post('/tickets', { sse: true }, async request => ({ ticket: app.sse.issueTicket({ userId: request.sseUser!.userId }) }))
    })
    const ticket = app.sse.issueTicket({ userId: 'ada' })
    t.equal((await open(`/tickets?ticket=${ticket}`, { method: 'POST' })).status, 401)
    t.equal((await open(`/sse?ticket=${ticket}`, { method: 'HEAD', headers: { connection: 'close' } })).status, 401)
    t.ok((await open(`/sse?ticket=${ticket}`)).isStream, 'nor is it used up by that')
  })

  await t.test('of another log: a node that does not share it, or a restart that has forgotten who came', async t => {
    const other = await serve(t, options)
    const ticket = app.sse.issueTicket({ userId: 'ada' })
    refused(await other.open(`/events?ticket=${ticket}`), 'the key alone is not enough')
    t.ok((await visit(ticket)).isStream)
  })

  await t.test('of several keys the first signs, and all are good', async t => {
    // One log, so that only the keys differ.
    const epoch = 'shared'
    const withKeys = (...ticketSecret: string[]) => serve(t, { ...options, ticketSecret, broker: Object.defineProperty(memoryBroker(), 'epoch', { value: epoch }) })
    const [old, both] = [await withKeys(SECRET), await withKeys(`${SECRET} 2`, SECRET)]
    for (const from of [old, both]) t.ok((await both.open(`/events?ticket=${from.app.sse.issueTicket({ userId: 'ada' })}`)).isStream)
    refused(await old.open(`/events?ticket=${both.app.sse.issueTicket({ userId: 'ada' })}`), 'the new key is not known here yet')
  })

  await t.test('what cannot go into one is refused; without a key there are none', async t => {
    for (const grant of [{ userId: '' }, { userId: 7 }, { userId: 'a', ttlMs: 10 }, { userId: 'a', ttlMs: 700_000 }, { userId: 'a', expiresAt: NaN }, { userId: 'a', expiresAt: undefined }, { userId: undefined }, { userId: 'a', expires: 1 }, { userId: 'a', subscription: ['b'] }, { userId: 'a', subscriptions: 'b' }, { userId: 'a', subscriptions: ['1', '2', '3', '4'] }, { userId: 'a', claims: 'x'.repeat(4000) }, { userId: 'a', claims: 1n }]) {
      t.throws(() => app.sse.issueTicket(grant as never), { code: 'SSE_ERR_TICKET_NOT_ISSUED' })
    }
    for (const [grant, message] of [['ada', 'issueTicket() takes an object { userId, claims, expiresAt, ttlMs, subscriptions }, got a string'], [undefined, 'got undefined'], [{ userid: 'ada' }, 'no property "userid": it has userId, claims, expiresAt, ttlMs, subscriptions; did you mean "userId"?'], [{ userId: 7 }, 'userId must be a string that is not empty, got 7: use String(id)']]) {
      t.throws(() => app.sse.issueTicket(grant as never), { message: message as never })
    }
    t.throws(() => app.sse.issueTicket({ userId: 'a', subscriptions: ['b::c'] }), { code: 'SSE_ERR_INVALID_SUBSCRIPTION' })
    const none = await serve(t, {}, {}, app => {
      app.post('/post', { sse: true }, async () => ({}))
      app.get('/plain', async (request, reply) => {
        reply.hijack()
        await app.sse.createConnection({ request: request.raw, response: reply.raw }).catch(error => app.sse.refuse({ request: request.raw, response: reply.raw }, error))
      })
    })
    t.throws(() => none.app.sse.issueTicket({ userId: 'ada' }), { code: 'SSE_ERR_TICKET_NOT_ISSUED' })
    t.ok((await none.open('/sse')).isStream)
    for (const path of ['/sse?ticket=theirs', `/sse?ticket=${app.sse.issueTicket({ userId: 'ada' })}`, '/sse?ticket=', '/sse?a&ticket']) refused(await none.open(path), 'what is recognised by nothing does not get what anonymous clients get')
    refused(await none.open('/post?ticket=theirs', { method: 'POST' }), 'by whatever method')
    refused(await none.open('/plain?ticket=theirs'), 'nor without Fastify')
    t.ok((await none.open('/plain')).isStream)
    t.ok((await none.open('/sse?ticket=theirs&user=ada')).isStream, 'the application recognises it: the name is the application\'s then')
  })
})

t.test('tickets and tokens do not reach the log, whatever happens', async t => {
  for (const [what, serializers] of [
    ['the logger as it is', undefined],
    ['with a serializer of the application', { req: (request: FastifyRequest) => ({ seen: request.url, query: request.query, list: [`and ${request.url}`] }) }]
  ] as const) {
    await t.test(what, async t => {
      const lines: string[] = []
      const logger = { level: 'trace', stream: { write: (line: string) => { lines.push(line) } }, ...(serializers !== undefined && { serializers }) }
      let fail = false
      const { app, open } = await serve(t, {
        ticketSecret: SECRET,
        maxConnectionsPerUser: 3,
        authHandler: () => {
          if (fail) throw new Error('no database')
          return 'ada'
        }
      }, { logger }, app => {
        app.get('/broken', { sse: true }, async () => { throw new Error('broken') })
        app.get('/source', { sse: true }, (_request: FastifyRequest, reply: FastifyReply) => reply.sse(async function * () {
          yield 'a'
          throw new Error('broken')
        }))
        app.get('/logs', { sse: true }, async (request: FastifyRequest, reply: FastifyReply) => {
          request.log.warn({ req: request }, 'seen')
          await reply.sse()
        })
      })
      const secrets: string[] = []
      const query = (): string => {
        const ticket = app.sse.issueTicket({ userId: 'ada' })
        secrets.push(ticket.split('.')[1]!, ticket.split('.')[0]!)
        secrets.push('hunter2', 'swordfish', 'xyzzy')
        return `?a=public&ticket=${ticket}&token=hunter2&%74oken=swordfish&Access_Token=xyzzy`
      }
      for (const path of ['/sse', '/broken', '/source', '/logs']) {
        const before = lines.length
        for (const headers of [{}, { accept: 'text/event-stream' }, { accept: 'text/html' }, { 'sec-fetch-site': 'cross-site' }] as Record<string, string>[]) await (await open(path + query(), { headers })).close()
        await open(`${path}?ticket=nonsense&token=hunter2`)
        fail = true
        await open(`${path}?token=hunter2`)
        fail = false
        await until(() => lines.length > before + 6)
      }
      const full = await Promise.all(Array.from({ length: 5 }, () => open(`/sse${query()}`)))
      t.ok(full.some(({ status }) => status === 429))
      for (const secret of new Set([...secrets, 'nonsense'])) t.notOk(lines.some(line => line.includes(secret)), `${lines.find(line => line.includes(secret))}`)
      const seen = lines.filter(line => line.includes('public'))
      t.ok(seen.length > 10 && seen.every(line => line.includes('ticket=[redacted]') && line.includes('token=[redacted]')), 'but the request is there')
    })
  }
  await t.test('nor what Fastify says of a route that does not exist, when the application answers that', async t => {
    const lines: string[] = []
    const { open } = await serve(t, { ticketSecret: SECRET }, { logger: { level: 'trace', serializers: { req: requestSerializer }, stream: { write: line => { lines.push(line) } } } }, app => {
      app.setNotFoundHandler((_request, reply) => reply.code(404).send({ error: 'Not Found' }))
    })
    for (const [path, method] of [['/nowhere', 'GET'], ['/sse', 'DELETE']] as const) {
      const stream = await open(`${path}?ticket=hunter2`, { method })
      t.equal(stream.status, 404)
      t.notMatch(stream.body, 'hunter2')
    }
    t.ok(lines.some(line => line.includes('/nowhere?ticket=[redacted]')))
    t.strictSame(lines.filter(line => line.includes('hunter2')), [])
  })
  await t.test('what a serializer may return', async t => {
    const when = new Date()
    t.strictSame(redacting(() => ({ when, where: new URL('http://x/a?ticket=1'), nothing: null, deep: [{ ticket: '1' }] }))({} as FastifyRequest),
      { when: when.toJSON(), where: 'http://x/a?ticket=[redacted]', nothing: null, deep: [{ ticket: '[redacted]' }] })
  })
  t.strictSame(['/a', '/a?b=1', '/a?ticket', '/a?ticket=', '/a?x=1&ticket=a=b&y=2', '/a?to%6ben=1', '/a?%zz=1&token=2', '/a?token=1?token=2'].map(redactUrl),
    ['/a', '/a?b=1', '/a?ticket', '/a?ticket=[redacted]', '/a?x=1&ticket=[redacted]&y=2', '/a?to%6ben=[redacted]', '/a?%zz=1&token=[redacted]', '/a?token=[redacted]'])
})
