import t from 'tap'
import { Authorization, type AuthorizeSubscription, type Holder } from '../../lib/subscriptions/authorization.js'
import { Registry } from '../../lib/subscriptions/registry.js'
import { recorder } from '../helpers/logged.js'
import { turns } from '../helpers/wait.js'

// Subscriptions of the connections of one node: granted, checked again and taken away.

function authorization (authorizeSubscription?: AuthorizeSubscription) {
  const registry = new Registry<Holder>()
  const { log, lines } = recorder()
  const calls: string[] = []
  return {
    registry,
    lines,
    calls,
    subscriptions: new Authorization<Holder>({ authorizeSubscription, maxSubscriptionsPerConnection: 3 }, registry, log),
    add: (clientId: string, userId: string, held: string[] = [], managed = true) => {
      const call = (name: string) => (...args: unknown[]) => { calls.push([clientId, name, ...args].join(' ')) }
      const holder = { clientId, userId, claims: 7, managed, held: new Set(held), index: 0, mark: 0, reconsider: call('reconsider'), sift: call('sift'), hold: call('hold'), endHold: call('endHold'), added: call('added'), tellUnsubscribed: call('told') } as unknown as Holder
      registry.add(holder)
      return holder
    }
  }
}

t.test('what was decided, in whatever way, is not waited for any more', async t => {
  const { subscriptions } = authorization(({ subscriptionId }) => {
    if (subscriptionId === 'throws') throw new Error('no database')
    return subscriptionId === 'later' ? Promise.resolve(true) : subscriptionId === 'yes'
  })
  const pending = () => {
    let count = 0
    subscriptions.disturb(() => {
      count++
      return false
    })
    return count
  }
  const grant = async (topics: string[], then = () => 'granted') => await subscriptions.grant({ request: null, userId: 'ada', claims: 7 }, topics, then)
  const asking = [grant(['later']), grant(['yes'])]
  t.equal(pending(), 2)
  t.strictSame(await Promise.all(asking), ['granted', 'granted'])
  t.equal(pending(), 0)
  await t.rejects(grant(['yes', 'no']), { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN' })
  await t.rejects(grant(['throws']), { code: 'SSE_ERR_AUTHENTICATION_FAILED' })
  await t.rejects(grant(['yes'], () => { throw new Error('full') }), { message: 'full' })
  t.equal(pending(), 0)
})

t.test('rights that change while they are asked about are asked about again, of their user only', async t => {
  const answers: ((allowed: boolean) => void)[] = []
  const { subscriptions } = authorization(() => new Promise<boolean>(resolve => { answers.push(resolve) }))
  const granted: string[] = []
  const asking = ['ada', 'grace', null].map(userId => subscriptions.grant({ request: null, userId, claims: undefined }, ['a', 'b'], () => granted.push(`${userId}`)))
  t.equal(answers.length, 6)
  subscriptions.revoke('ada', 'a', 'gone')
  for (const answer of answers.splice(0)) answer(true)
  await turns()
  t.strictSame(granted, ['grace', 'null'])
  t.equal(answers.length, 2, 'both topics again')
  await subscriptions.reauthorize('grace', 'gone')
  await subscriptions.reauthorize('ada', 'gone')
  for (const answer of answers.splice(0)) answer(true)
  await turns()
  t.equal(answers.length, 2, 'and once more')
  for (const answer of answers.splice(0)) answer(true)
  await Promise.all(asking)
  t.strictSame(granted, ['grace', 'null', 'ada'])
})

t.test('a stream of its own source holds no subscriptions: there is no such connection', async t => {
  const { subscriptions, registry, calls, add } = authorization()
  add('source', 'ada', [], false)
  t.equal(await subscriptions.add('source', 'a'), null)
  t.equal(subscriptions.remove('source', 'a'), null)
  t.equal(subscriptions.revoke('ada', 'a', 'gone'), 0)
  t.strictSame([registry.subscriptions, calls], [0, []])
})

t.test('one subscription more, one less, and what the connection is told of it', async t => {
  const { subscriptions, registry, calls, add } = authorization()
  const { held } = add('c', 'ada', ['a', 'b'])
  add('d', 'ada', ['a'])
  add('e', 'grace', ['a'])
  t.equal(await subscriptions.add('c', 'c'), true)
  t.equal(await subscriptions.add('c', 'c'), true, 'it is held')
  await t.rejects(subscriptions.add('c', 'd'), { code: 'SSE_ERR_TOO_MANY_SUBSCRIPTIONS', message: 'at most 3' })
  t.strictSame([await subscriptions.add('nobody', 'a'), subscriptions.remove('nobody', 'a')], [null, null])
  t.strictSame(calls.splice(0), ['c added c'])
  t.strictSame([subscriptions.remove('c', 'b'), subscriptions.remove('c', 'b')], [true, false])
  t.strictSame(calls.splice(0), ['c sift'])
  t.equal(subscriptions.revoke('ada', 'a', 'gone'), 2)
  t.strictSame(calls.splice(0), ['c', 'd'].flatMap(id => [`${id} reconsider`, `${id} told a gone`]), 'what waits is looked at first')
  t.equal(subscriptions.revoke('ada', 'a', 'gone'), 0)
  t.strictSame([[...held], registry.subscription('a').map(({ clientId }) => clientId), calls], [['c'], ['e'], []])
  t.equal(await subscriptions.reauthorize('ada', 'gone'), 0)
  t.strictSame(calls.splice(0), ['c reconsider', 'd reconsider'], 'authorizeTopic may answer otherwise')
})

t.test('a check of all that a user holds: events wait meanwhile, and each subscription is taken once', async t => {
  const answers: Record<string, (allowed: boolean) => void> = {}
  const { subscriptions, registry, calls, lines, add } = authorization(({ request, userId, claims, subscriptionId }) => {
    t.strictSame([request, userId, claims], [null, 'ada', 7])
    if (subscriptionId === 'throws') throw new Error('no database')
    return new Promise<boolean>(resolve => { answers[subscriptionId] = resolve })
  })
  add('c', 'ada', ['yes', 'no', 'taken'])
  add('d', 'ada', ['throws'])
  add('e', 'ada')
  const checking = subscriptions.reauthorize('ada', 'gone')
  await turns()
  const called = (clientId: string) => calls.filter(call => call.startsWith(clientId))
  t.strictSame(called('c'), ['c reconsider', 'c hold'])
  t.strictSame(called('d'), ['d reconsider', 'd hold', 'd reconsider', 'd told throws gone', 'd endHold'])
  t.strictSame(called('e'), ['e reconsider', 'e hold', 'e endHold'])
  t.match(lines, [['error', { clientId: 'd', subscriptionId: 'throws', err: { code: 'SSE_ERR_AUTHENTICATION_FAILED' } }]])
  subscriptions.revoke('ada', 'taken', 'before')
  calls.length = 0
  for (const [topic, answer] of Object.entries(answers)) answer(topic === 'yes')
  t.equal(await checking, 2)
  t.strictSame(calls, ['c reconsider', 'c told no gone', 'c endHold'])
  t.strictSame([registry.subscription('yes').length, registry.subscriptions, lines.length], [1, 1, 1])
})
