import fc from 'fast-check'
import assert from 'node:assert/strict'
import type { onRequestHookHandler, RouteOptions } from 'fastify'
import t from 'tap'
import { overlay, pinHooks } from '../../lib/fastify/pin-hooks.js'

// What other plugins do to the options of a route: on real instances in scopes.ts, here in any order.

type Hook = (ran: string[]) => void
type Route = { onRequest?: Hook | Hook[] | undefined }

const named = (name: string): Hook => ran => { ran.push(name) }

/** Runs the hooks of a route as Fastify does when all plugins are loaded. */
const run = (route: Route): string[] => {
  const ran: string[] = []
  for (const hook of [route.onRequest ?? []].flat()) hook(ran)
  return ran
}

/** Pins a last hook, and a first one, to a route. */
function pin (route: Route, withFirst = true): Route {
  const first = named('first') as unknown as onRequestHookHandler
  const lastOf = (isLast: () => boolean) => ((ran: string[]) => { if (isLast()) ran.push('last') }) as unknown as onRequestHookHandler
  pinHooks(route as unknown as RouteOptions, 'onRequest', lastOf, withFirst ? first : undefined)
  return route
}

t.test('whatever is done to the hooks of a route, the last one is run once, and last; the first one before all others, if there are others', async t => {
  const list = (route: Route) => [route.onRequest ?? []].flat()
  const wrap = (hook: Hook): Hook => ran => hook(ran)
  const steps: Record<string, (route: Route, name: string) => void> = {
    read: route => { assert.equal(route.onRequest, route.onRequest, 'plugins add hooks to the list that they have read') },
    append: (route, name) => { route.onRequest = [...list(route), named(name)] },
    prepend: (route, name) => { route.onRequest = [named(name), ...list(route)] },
    push: (route, name) => { (route.onRequest as Hook[]).push(named(name)) },
    unshift: (route, name) => { (route.onRequest as Hook[]).unshift(named(name)) },
    wrap: route => { route.onRequest = list(route).map(wrap) },
    'wrap and add': (route, name) => { route.onRequest = [...list(route).map(wrap), named(name)] },
    again: route => { route.onRequest = list(route) }
  }
  const step = fc.constantFrom(...Object.keys(steps))
  t.doesNotThrow(() => fc.assert(fc.property(fc.constantFrom(undefined, 'one', 'list'), fc.boolean(), fc.array(step, { maxLength: 8 }), (start, withFirst, names) => {
    const own = named('own')
    const route = pin(start === undefined ? {} : { onRequest: start === 'one' ? own : [own, own] }, withFirst)
    const added = start === undefined ? [] : start === 'one' ? ['own'] : ['own', 'own']
    for (const [i, name] of names.entries()) {
      steps[name]!(route, `${i}`)
      if (name === 'append' || name === 'push' || name === 'wrap and add') added.push(`${i}`)
      if (name === 'prepend' || name === 'unshift') added.unshift(`${i}`)
    }
    const ran = run(route)
    assert.deepEqual(ran.filter(name => name !== 'first'), [...added, 'last'])
    // A copy that another plugin has wrapped comes later; it counts once more, and does nothing that a second call would change.
    assert.equal(ran.includes('first'), withFirst && (added.length > 0 || names.some(name => name.startsWith('wrap'))))
    if (ran.includes('first')) assert.equal(ran[0], 'first')
    assert.deepEqual(run(route), ran, 'reading changes nothing')
  }), { numRuns: 1_000 }))

  const route = pin({})
  route.onRequest = named('only')
  t.strictSame(run(route), ['first', 'only', 'last'])
  route.onRequest = undefined
  t.strictSame(run(route), ['last'])
  t.strictSame(Object.keys(route), ['onRequest'], 'a copy of the options has the hooks')
  t.strictSame(run({ ...route }), ['last'])
  t.throws(() => { delete route.onRequest }, TypeError)
})

t.test('an option is shown through the overlay once, also a value that is set later, or was read and is set again', async t => {
  type Serializers = Record<string, (value: any) => any>
  const wrapped: unknown[] = []
  const route: { logSerializers?: Serializers } = {}
  overlay(route as unknown as RouteOptions, 'logSerializers', value => {
    wrapped.push(value)
    return { given: () => value } as never
  })
  t.strictSame(wrapped.splice(0), [undefined])
  t.equal(route.logSerializers, route.logSerializers)
  const shown = route.logSerializers!
  route.logSerializers = shown
  t.strictSame([wrapped.splice(0), route.logSerializers === shown], [[], true])
  const later = { req: () => 1 }
  route.logSerializers = later
  t.strictSame([wrapped.splice(0), route.logSerializers['given']!(0)], [[later], later])
  t.strictSame(Object.keys(route), ['logSerializers'])
})
