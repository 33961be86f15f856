import { Type } from '@sinclair/typebox'
import t from 'tap'
import { defineEvents } from '../../lib/index.js'
import { checkBuiltIn, isCatalogue } from '../../lib/events/catalogue.js'

t.test('what a catalogue can define', async t => {
  const schema = Type.String()
  for (const [definition, code, message] of [
    [{ event: {} }, 'SSE_ERR_INVALID_CATALOGUE', 'Catalogue entry "event" is not a key of defineEvents(): use events or resources'],
    [{ events: { data: schema } }, 'SSE_ERR_INVALID_CATALOGUE', 'Catalogue entry "events.data" is built in: put the schemas of its payloads into `resources`'],
    [{ events: { notification: schema } }, 'SSE_ERR_INVALID_CATALOGUE', 'Catalogue entry "events.notification" is built in: leave it out, and send it with broadcastNotification({ title, message, level?, actions? })'],
    [{ events: { x: { type: 'string' } } }, 'SSE_ERR_INVALID_CATALOGUE', 'Catalogue entry "events.x" is not a schema of @sinclair/typebox'],
    [{ resources: { x: undefined } }, 'SSE_ERR_INVALID_CATALOGUE', 'Catalogue entry "resources.x" is not a schema of @sinclair/typebox'],
    [{ resources: { x: Type.Ref('unknown') } }, 'SSE_ERR_INVALID_CATALOGUE', /^Catalogue entry "resources.x" cannot be compiled: ./],
    [{ events: { open: schema } }, 'SSE_ERR_INVALID_EVENT_NAME', /./],
    [{ events: { 'sse:x': schema } }, 'SSE_ERR_INVALID_EVENT_NAME', /./]
  ] as const) t.throws(() => defineEvents(definition as never), { code, message })
  t.equal((t.throws(() => defineEvents({ events: { x: Type.Ref('unknown') } })) as unknown as Error).cause instanceof Error, true)

  const events = { x: schema }
  const catalogue = defineEvents({ events, resources: { data: schema } })
  Object.assign(events, { y: schema })
  t.strictSame(Object.keys(catalogue.events), ['x'], 'what is added later is not known')
  t.throws(() => { Object.assign(catalogue.events, { y: schema }) }, TypeError)
  t.throws(() => { Object.assign(catalogue.resources, { y: schema }) }, TypeError)
  t.doesNotThrow(() => catalogue.check('data', { resource: 'data', data: 'text' }), 'a resource can have any name')
  t.throws(() => defineEvents().check('x', 1), { code: 'SSE_ERR_UNKNOWN_EVENT' })
  t.doesNotThrow(() => defineEvents().check('notification', { title: 'T', message: 'M', level: 'info' }))

  // Of another copy of the package, loaded by `require` beside `import`.
  const other = { [Symbol.for('fastify-sse-manager.catalogue')]: true }
  t.strictSame([catalogue, defineEvents(), other, {}, null, undefined, 'text', () => {}].map(isCatalogue), [true, true, true, false, false, false, false, false])
})

t.test('what a payload is rejected for', async t => {
  const catalogue = defineEvents({
    events: {
      object: Type.Object({ a: Type.String(), b: Type.Optional(Type.Number()) }),
      any: Type.Object({}),
      mode: Type.Union([Type.Literal('on'), Type.Literal('off')]),
      mixed: Type.Union([Type.Literal('on'), Type.Number()]),
      long: Type.Object({ ['k'.repeat(100)]: Type.String() })
    },
    resources: { order: Type.Object({ id: Type.Integer() }) }
  })
  const invalid = (name: string, fault: string) => ({ code: 'SSE_ERR_INVALID_PAYLOAD', message: `Payload of "${name}" is invalid at ${fault}` })
  const rows: [event: string, data: unknown, error: { code: string, message: string | RegExp }][] = [
    ['object', 'text', invalid('object', '/: Expected { a, b }, got a string')],
    ['object', { a: 1 }, invalid('object', '/a: Expected string')],
    ['object', {}, invalid('object', '/a: is missing')],
    ['object', Promise.resolve({ a: 'x' }), invalid('object', '/: is a promise: await it first')],
    ['any', 7, invalid('any', '/: Expected an object, got a number')],
    ['mode', 'auto', invalid('mode', '/: Expected one of "on", "off"')],
    ['mixed', 'auto', invalid('mixed', '/: Expected union value')],
    ['long', { ['k'.repeat(100)]: 1 }, invalid('long', `/${'k'.repeat(79)}…: Expected string`)],
    ['data', { resource: 'order', data: { id: 'x' } }, invalid('order', '/id: Expected integer')],
    ['data', { resource: 'order', data: Promise.resolve({ id: 1 }) }, invalid('data', '/data: is a promise: await it first')],
    ['data', { resource: 'oder', data: {} }, { code: 'SSE_ERR_UNKNOWN_RESOURCE', message: 'Resource "oder" is not in the catalogue; did you mean "order"?' }],
    ['objct', {}, { code: 'SSE_ERR_UNKNOWN_EVENT', message: 'Event "objct" is not in the catalogue; did you mean "object"?' }],
    ['other', {}, { code: 'SSE_ERR_UNKNOWN_EVENT', message: /"other" is not in the catalogue$/ }],
    ['order', { id: 1 }, { code: 'SSE_ERR_UNKNOWN_EVENT', message: 'Event "order" is not in the catalogue: it is a resource, for broadcastData() or sendData(), or createDataEvent("order", data) as an event' }],
    ['data', { resource: 'mode', data: 'on' }, { code: 'SSE_ERR_UNKNOWN_RESOURCE', message: 'Resource "mode" is not in the catalogue: it is an event, { event: "mode", data } for broadcastEvent() or sendEvent()' }]
  ]
  for (const [event, data, error] of rows) t.throws(() => catalogue.check(event, data), error)
  t.doesNotThrow(() => catalogue.check('object', { a: 'x', c: 1 }))

  const withoutJSON: [value: unknown, fault: string][] = [[undefined, 'undefined has no JSON form'], [() => 1, 'function has no JSON form'], [Symbol('s'), 'symbol has no JSON form'], [Promise.resolve(), 'is a promise: await it first']]
  for (const [data, fault] of withoutJSON) t.throws(() => checkBuiltIn('data', { resource: 'r', data }), invalid('data', `/data: ${fault}`))
  for (const data of [null, 0, '', false, [], {}]) t.doesNotThrow(() => checkBuiltIn('data', { resource: 'r', data }))
  t.doesNotThrow(() => checkBuiltIn('other', undefined), 'only built-in events have a form without a catalogue')
})
