import t from 'tap'
import { SSEError } from '../lib/index.js'
import { ClientGone, InvalidOption, reviveError, SnapshotAborted, StreamEnded, TestRefused } from '../lib/errors.js'

t.test('what is an error of this package, also of another copy of it', async t => {
  const with_ = (code: unknown) => Object.assign(new Error('x'), { code })
  const values: [value: unknown, isOurs: boolean][] = [
    [new InvalidOption('a', 'b'), true],
    [new StreamEnded('closed'), true],
    [with_('SSE_ERR_OF_A_LATER_VERSION'), true],
    [with_('FST_ERR_CTP_INVALID_MEDIA_TYPE'), false],
    [with_('X_SSE_ERR_'), false],
    [with_(['SSE_ERR_CLOSED']), false],
    [with_(undefined), false],
    [new Error('SSE_ERR_CLOSED'), false],
    [{ code: 'SSE_ERR_CLOSED' }, false],
    [null, false],
    [undefined, false],
    ['SSE_ERR_CLOSED', false],
    [Object.defineProperty(new Error('x'), 'code', { get () { throw new Error('no') } }), false]
  ]
  for (const [value, isOurs] of values) t.equal(value instanceof SSEError, isOurs, String((value as { code?: unknown } | null)?.constructor))
})

t.test('messages, statuses and names', async t => {
  t.match(new InvalidOption('path', 'must begin with "/"'), { name: 'FastifyError', code: 'SSE_ERR_INVALID_OPTION', statusCode: 500, message: 'Option "path" must begin with "/"' })
  t.match(new ClientGone(), { code: 'SSE_ERR_CLIENT_GONE', statusCode: 499 })
  const cause = new Error('mine')
  t.equal(new InvalidOption('a', 'b', { cause }).cause, cause)
  t.match(new StreamEnded('kicked'), { name: 'AbortError', code: 'SSE_ERR_STREAM_ENDED', statusCode: 499, closeReason: 'kicked', message: 'The stream has ended: kicked' })
  t.match(new SnapshotAborted('timeout'), { name: 'AbortError', code: 'SSE_ERR_SNAPSHOT_ABORTED', message: 'The load of a snapshot was aborted: timeout' })
  t.match(new TestRefused('GET /', 'status 401', 401, { code: 'X' }, { a: 'b' }), { code: 'SSE_ERR_TEST_REFUSED', statusCode: 401, body: { code: 'X' }, headers: { a: 'b' }, message: 'GET / was refused: status 401' })
  t.match(new TestRefused(), { statusCode: 500, body: undefined, headers: {} })
})

t.test('an error of another node has its code and message here', async t => {
  const known = reviveError('SSE_ERR_SUBSCRIPTION_FORBIDDEN', 'Subscription "a" is not allowed: no')
  t.match(known, { code: 'SSE_ERR_SUBSCRIPTION_FORBIDDEN', statusCode: 403, message: 'Subscription "a" is not allowed: no' })
  t.ok(known instanceof SSEError)
  t.match(reviveError('SSE_ERR_OF_A_LATER_VERSION', 'later'), { code: 'SSE_ERR_COMMAND_FAILED', statusCode: 500, message: 'later' })
})
