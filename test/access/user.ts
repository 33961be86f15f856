import t from 'tap'
import { currentUser, isEnd, kTestUser, testUserOf } from '../../lib/access/authentication.js'
import type { AnyRequest } from '../../lib/wire/http.js'
import { systemClock } from '../../lib/util/clock.js'

// What an application may say of a user.

const NOW = 1_700_000_000_000
const clock = { ...systemClock, wall: () => NOW }

t.test('a user, nobody, or rights that have ended', t => {
  const user = { userId: 'ada', claims: 7 }
  t.equal(currentUser(user, { clock }), user)
  t.strictSame(currentUser('a user id of some length', { clock }), { userId: 'a user id of some length' })
  for (const nobody of [null, undefined]) t.equal(currentUser(nobody, { clock }), null)
  for (const [expiresAt, lives] of [[NOW - 1, false], [NOW, false], [NOW + 1, true], [null, true], [1e11, false], [999_999_999, false], [0, false], [-1, false], [NOW + 0.5, true], [1e15, true]] as const) {
    t.equal(currentUser({ userId: 'ada', expiresAt }, { clock }) !== null, lives, `${expiresAt}`)
  }
  t.end()
})

t.test('what is no user: the error says what was found', t => {
  class Session { userId = 'ada' }
  t.ok(currentUser(new Session(), { clock }))
  for (const [given, message] of [
    ['', 'an empty string'], [7, 'a number'], [true, 'a boolean'], [Symbol('ada'), 'a symbol'], [() => 'ada', 'a function'], [7n, 'a bigint'],
    [Promise.resolve('ada'), 'a promise: await it first'], [{}, 'an object whose userId is of type undefined'], [[], 'an object whose userId is of type undefined'], [{ userId: '' }, 'an object whose userId is empty'],
    [{ userId: 7 }, 'an object whose userId is of type number'], [{ userId: null }, 'an object whose userId is of type object'],
    [{ userId: 'ada', expiresAt: undefined }, 'an object whose expiresAt is of type undefined'], [{ userId: 'ada', expiresAt: 'soon' }, 'an object whose expiresAt is of type string'],
    [{ userId: 'ada', expiresAt: NaN }, 'an object whose expiresAt is NaN'], [{ userId: 'ada', expiresAt: -Infinity }, 'an object whose expiresAt is -Infinity'],
    [{ userId: 'ada', expiresAt: 1e9 }, 'an object whose expiresAt is 1000000000, which looks like seconds'], [{ userId: 'ada', expiresAt: 99_999_999_999 }, 'an object whose expiresAt is 99999999999, which looks like seconds']
  ] as const) {
    t.throws(() => currentUser(given, { clock }), { code: 'SSE_ERR_INVALID_USER', message: ` is ${message}: it must be ` }, message)
  }
  for (const [rights, valid] of [[{}, true], [{ expiresAt: null }, true], [{ expiresAt: 5 }, true], [{ expiresAt: undefined }, false], [{ expiresAt: '5' }, false], [{ expiresAt: Infinity }, false]] as const) t.equal(isEnd(rights), valid)
  t.end()
})

t.test('the user that a test assigns to a request of Fastify or of Node.js', t => {
  const user = { userId: 'ada' }
  const request = (more: object) => ({ headers: {}, ...more }) as unknown as AnyRequest
  t.equal(testUserOf(request({ [kTestUser]: user })), user)
  t.equal(testUserOf(request({ raw: { [kTestUser]: user } })), user)
  for (const none of [{}, { raw: {} }, { raw: {}, [kTestUser]: user }]) t.equal(testUserOf(request(none)), null)
  t.end()
})
