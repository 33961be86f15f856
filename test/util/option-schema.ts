import { Type, type TSchema } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import t from 'tap'
import { bytes, count, durationMs, fn, formOf, literalsOf, protects, resolve } from '../../lib/util/option-schema.js'

const Schema = Type.Object({
  key: Type.String({ minLength: 2, maxLength: 4 }),
  single: Type.Optional(Type.String({ minLength: 1, maxLength: 1, pattern: '^[a-z]+$', rule: 'must be lower case' })),
  list: Type.Array(Type.String(), { default: [], minItems: 0, maxItems: 1, description: 'A list.' }),
  numbers: Type.Optional(Type.Array(Type.Integer({ minimum: 1, maximum: 9 }), { minItems: 1, maxItems: 3 })),
  mode: Type.Union([Type.Literal('fast'), Type.Object({ everyMs: Type.Integer({ minimum: 1, maximum: 5 }) }, { additionalProperties: false })], { default: 'fast' }),
  secret: Type.Optional(Type.Union([Type.String({ minLength: 3 }), Type.Array(Type.String({ minLength: 3 }))])),
  call: fn<() => void>('A function.', { protects: true }),
  inner: Type.Object({
    on: Type.Boolean({ default: true, protects: true, description: 'Whether it is on.' }),
    waitMs: durationMs('A time.', 10, 1, 20)
  }, { default: {}, additionalProperties: false })
}, { additionalProperties: false })
const check = TypeCompiler.Compile(Schema)

const faultOf = (given: unknown, place?: Parameters<typeof resolve>[3]): string => {
  try {
    resolve(Schema, check, given, place)
    return ''
  } catch (error) {
    return (error as Error).message
  }
}

t.test('what is absent or undefined takes its default, and the given object stays as it is', async t => {
  const given = { key: 'abc', single: undefined, inner: { waitMs: undefined } }
  t.strictSame(resolve(Schema, check, given), { key: 'abc', list: [], mode: 'fast', inner: { on: true, waitMs: 10 } })
  t.strictSame(given, { key: 'abc', single: undefined, inner: { waitMs: undefined } })
  const list = ['a']
  t.strictSame(resolve(Schema, check, { key: 'ab', list, mode: { everyMs: 5 }, secret: ['abc'], inner: { on: false, waitMs: 20 } }), { key: 'ab', list, mode: { everyMs: 5 }, secret: ['abc'], inner: { on: false, waitMs: 20 } })
})

t.test('faults name the option and what it must be, and show no text that can be secret', async t => {
  const key = 'abc'
  const rows: [given: unknown, message: string][] = [
    [undefined, 'Option "/" must be an object { key }, got undefined'],
    [[], 'Option "/" must be an object { key }, got an array'],
    ['text', 'Option "/" must be an object { key }, got "text"'],
    [Promise.resolve({ key }), 'Option "/" must be an object, not a promise of one: await it first'],
    [{}, 'Option "key" is missing: it must be a string'],
    [{ kye: 'abc' }, 'Option "kye" is not an option: it has key, single, list, numbers, mode, secret, call, inner; did you mean "key"?'],
    [{ key, call: undefined }, 'Option "call" is undefined, which would remove a protection: set a value or omit the option: A function.'],
    [{ key, inner: { on: undefined } }, 'Option "inner.on" is undefined, which would remove a protection: set a value or omit the option: Whether it is on.'],
    [{ key, toString: undefined }, 'Option "toString" is not an option: it has key, single, list, numbers, mode, secret, call, inner'],
    [{ key: 'a' }, 'Option "key" must have at least 2 characters, has 1'],
    [{ key: 'abcde' }, 'Option "key" must have at most 4 characters, has 5'],
    [{ key, single: '' }, 'Option "single" must have at least 1 character, has 0'],
    [{ key, single: 'ab' }, 'Option "single" must have at most 1 character, has 2'],
    [{ key, single: 'A' }, 'Option "single" must be lower case, got "A"'],
    [{ key, single: 7 }, 'Option "single" must be a string, got a number'],
    [{ key, list: ['a', 'b'] }, 'Option "list" must have at most 1 item, has 2: A list.'],
    [{ key, list: 'secret' }, 'Option "list" must be an array of strings, got a string: A list.'],
    [{ key, list: [7] }, 'Option "list.0" must be a string, got a number'],
    [{ key, numbers: [] }, 'Option "numbers" must have at least 1 item, has 0'],
    [{ key, numbers: [1, 2, 3, 4] }, 'Option "numbers" must have at most 3 items, has 4'],
    [{ key, numbers: 'five' }, 'Option "numbers" must be an array of an integer from 1 to 9, got "five"'],
    [{ key, numbers: [10] }, 'Option "numbers.0" must be an integer from 1 to 9, got 10'],
    [{ key, mode: null }, 'Option "mode" must be "fast" or { everyMs }, got null'],
    [{ key, mode: [] }, 'Option "mode" must be "fast" or { everyMs }, got an array'],
    [{ key, mode: 'slow' }, 'Option "mode" must be "fast" or { everyMs }, got "slow"'],
    [{ key, mode: {} }, 'Option "mode.everyMs" is missing: it must be an integer from 1 to 5'],
    [{ key, mode: { everyMs: 6 } }, 'Option "mode.everyMs" must be an integer from 1 to 5, got 6'],
    [{ key, mode: { evryMs: 1 } }, 'Option "mode.evryMs" is not an option: it has everyMs; did you mean "everyMs"?'],
    [{ key, secret: 12345 }, 'Option "secret" must be a string or an array of strings, got a number'],
    [{ key, secret: ['abc', 'ab'] }, 'Option "secret.1" must have at least 3 characters, has 2'],
    [{ key, inner: [] }, 'Option "inner" must be an object { on, waitMs }, got an array'],
    [{ key, inner: null }, 'Option "inner" must be an object { on, waitMs }, got null'],
    [{ key, inner: { on: 1, waitMs: 0 } }, 'Option "inner.on" must be a boolean, got 1: Whether it is on.'],
    [{ key, inner: { waitMs: 0 } }, 'Option "inner.waitMs" must be an integer from 1 to 20, got 0: A time.']
  ]
  for (const [given, message] of rows) t.equal(faultOf(given), message)
  const place = { prefix: 'broker.', where: 'of the log ' }
  t.equal(faultOf([], place), 'Option "broker" of the log must be an object { key }, got an array')
  t.equal(faultOf({ key, call: undefined }, place), 'Option "broker.call" of the log is undefined, which would remove a protection: set a value or omit the option: A function.')
  t.equal(faultOf({ key, inner: { waitMs: 21 } }, place), 'Option "broker.inner.waitMs" of the log must be an integer from 1 to 20, got 21: A time.')
})

t.test('what a schema looks like', async t => {
  const forms: [schema: TSchema, one: string, many: string][] = [
    [Type.String(), 'a string', 'strings'],
    [Type.Object({}), 'an object', 'objects'],
    [Type.Object({ a: Type.String(), b: Type.Null() }), '{ a, b }', '{ a, b }'],
    [Type.Array(Type.Array(Type.Boolean())), 'an array of arrays of booleans', 'arrays of arrays of booleans'],
    [Type.Union([Type.Literal(1), Type.Array(Type.String()), Type.Null()]), '1 or an array of strings or a null', '1 or arrays of strings or nulls']
  ]
  for (const [schema, one, many] of forms) t.strictSame([formOf(schema), formOf(schema, true)], [one, many])
  t.strictSame([Type.Union([Type.Literal('a'), Type.Literal(2)]), Type.Union([Type.Literal('a'), Type.Boolean()]), Type.Literal('a')].map(literalsOf), [['"a"', '2'], null, null])
  const { key, call, inner } = Schema.properties
  t.strictSame([key, call, inner, inner.properties.waitMs].map(protects), [false, true, true, false])
  t.match([count('', 1), bytes('', 2), bytes('', 2, 1), durationMs('', 3)], [
    { minimum: 0, maximum: Number.MAX_SAFE_INTEGER, default: 1 }, { minimum: 1024, maximum: 2 ** 31, default: 2 }, { minimum: 1 }, { minimum: 0, maximum: 2 ** 31 - 1, default: 3 }
  ])
})
