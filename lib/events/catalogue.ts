import { Type, TypeGuard, type Static, type TSchema } from '@sinclair/typebox'
import { TypeCompiler, ValueErrorType, type TypeCheck, type ValueError } from '@sinclair/typebox/compiler'
import { InvalidCatalogue, InvalidPayload, UnknownEvent, UnknownResource } from '../errors.js'
import { assertEventName } from './event-rules.js'
import { kindOf, quote, shorten } from '../util/quote.js'
import { formOf, literalsOf } from '../util/option-schema.js'
import { suggestion } from '../util/suggestion.js'

const kCatalogue = Symbol.for('fastify-sse-manager.catalogue')

/** TypeBox schemas by name. */
export type Schemas = Record<string, TSchema>

const NotificationSchema = Type.Object({
  title: Type.String(),
  message: Type.String(),
  level: Type.Union([Type.Literal('info'), Type.Literal('success'), Type.Literal('warning'), Type.Literal('error')]),
  actions: Type.Optional(Type.Array(Type.Record(Type.String(), Type.Unknown())))
}, { additionalProperties: false })

const DataSchema = Type.Object({ resource: Type.String({ minLength: 1 }), data: Type.Unknown() }, { additionalProperties: false })

/** The data of a `notification` event. */
export type Notification = Static<typeof NotificationSchema>
/** The severity of a notification: `info`, `success`, `warning` or `error`. */
export type NotificationLevel = Notification['level']

/** Why an application does not declare these events. */
const BUILT_IN: Readonly<Record<string, string | undefined>> = Object.assign(Object.create(null), {
  data: 'put the schemas of its payloads into `resources`',
  notification: 'leave it out, and send it with broadcastNotification({ title, message, level?, actions? })'
})

const checkNotification = TypeCompiler.Compile(NotificationSchema)
const checkData = TypeCompiler.Compile(DataSchema)

/**
 * The events and resources that an application can send, with their compiled schemas. `defineEvents` creates it. Every catalogue
 * has the built-in events `data` and `notification`.
 */
export class Catalogue<E extends Schemas = Schemas, R extends Schemas = Schemas> {
  /** Identifies a catalogue, also one from another copy of the package (ESM beside CommonJS). @internal */
  readonly [kCatalogue] = true
  /** The schemas of the application's events, by event name. */
  readonly events: Readonly<E>
  /** The schemas of the payloads of `data` events, by resource name. */
  readonly resources: Readonly<R>
  readonly #events: ReadonlyMap<string, TypeCheck<TSchema>>
  readonly #resources: ReadonlyMap<string, TypeCheck<TSchema>>

  /** @internal */
  constructor (events: E, resources: R) {
    for (const name of Object.keys(events)) {
      const advice = BUILT_IN[name]
      if (advice !== undefined) throw new InvalidCatalogue(`events.${name}`, `is built in: ${advice}`)
      assertEventName(name)
    }
    this.events = Object.freeze({ ...events })
    this.resources = Object.freeze({ ...resources })
    this.#events = compile('events', events)
    this.#resources = compile('resources', resources)
  }

  /**
   * Rejects an event that is not in the catalogue, and data that does not match the schema.
   * @throws SSE_ERR_UNKNOWN_EVENT, SSE_ERR_UNKNOWN_RESOURCE, SSE_ERR_INVALID_PAYLOAD
   */
  check (event: string, data: unknown): void {
    checkBuiltIn(event, data)
    if (event === 'notification') return
    if (event === 'data') {
      const { resource, data: payload } = data as { resource: string, data: unknown }
      const check = this.#resources.get(resource)
      if (check === undefined) throw new UnknownResource(quote(resource), this.#events.has(resource) ? `: it is an event, { event: ${quote(resource)}, data } for broadcastEvent() or sendEvent()` : suggestion(resource, this.#resources.keys()))
      assertFits(check, resource, payload)
    } else {
      const check = this.#events.get(event)
      if (check === undefined) throw new UnknownEvent(quote(event), this.#resources.has(event) ? `: it is a resource, for broadcastData() or sendData(), or createDataEvent(${quote(event)}, data) as an event` : suggestion(event, this.#events.keys()))
      assertFits(check, event, data)
    }
  }
}

/** Returns whether `defineEvents` created the value, in this or another copy of the package. */
export function isCatalogue (value: unknown): value is Catalogue {
  return typeof value === 'object' && value !== null && kCatalogue in value
}

/**
 * Declares the events and resources of an application. The result is the option `events` of the plugin.
 * @throws SSE_ERR_INVALID_CATALOGUE for an entry that is not a TypeBox schema or cannot be compiled, SSE_ERR_INVALID_EVENT_NAME
 * @example
 * ```ts
 * import { Type } from '@sinclair/typebox'
 * import { defineEvents } from 'fastify-sse-manager'
 *
 * export const events = defineEvents({
 *   events: { 'order-paid': Type.Object({ orderId: Type.String(), total: Type.Number() }) },
 *   resources: { profile: Type.Object({ name: Type.String() }) }
 * })
 * ```
 */
export function defineEvents<const E extends Schemas = Record<never, TSchema>, const R extends Schemas = Record<never, TSchema>> (
  definition: {
    /** Schemas of the payloads, by event name. */
    events?: E
    /** Schemas of the payloads of `broadcastData` and `sendData`, by resource name. */
    resources?: R
  } = {}
): Catalogue<E, R> {
  for (const key of Object.keys(definition)) if (key !== 'events' && key !== 'resources') throw new InvalidCatalogue(key, 'is not a key of defineEvents(): use events or resources')
  const { events = {} as E, resources = {} as R } = definition
  return new Catalogue(events, resources)
}

/**
 * Rejects invalid data of the built-in events `data` and `notification`, with and without a catalogue.
 * @throws SSE_ERR_INVALID_PAYLOAD
 */
export function checkBuiltIn (event: string, data: unknown): void {
  if (event === 'notification') assertFits(checkNotification, event, data)
  else if (event === 'data') {
    assertFits(checkData, event, data)
    // JSON omits such values: the client would receive a resource without data.
    const { data: payload } = data as { data: unknown }
    if (payload instanceof Promise) throw new InvalidPayload(quote(event), '/data: is a promise: await it first')
    if (payload === undefined || typeof payload === 'function' || typeof payload === 'symbol') throw new InvalidPayload(quote(event), `/data: ${typeof payload} has no JSON form`)
  }
}

function compile (kind: string, schemas: Schemas): Map<string, TypeCheck<TSchema>> {
  const compiled = new Map<string, TypeCheck<TSchema>>()
  for (const [name, schema] of Object.entries(schemas)) {
    if (!TypeGuard.IsSchema(schema)) throw new InvalidCatalogue(`${kind}.${name}`, 'is not a schema of @sinclair/typebox')
    try {
      compiled.set(name, TypeCompiler.Compile(schema))
    } catch (cause) {
      throw new InvalidCatalogue(`${kind}.${name}`, `cannot be compiled: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
    }
  }
  return compiled
}

function assertFits (check: TypeCheck<TSchema>, name: string, data: unknown): void {
  if (check.Check(data)) return
  const first = check.Errors(data).First()
  const fault = first === undefined ? 'does not fit its schema' : expectation(first)
  throw new InvalidPayload(quote(name), kindOf(data) === 'a promise' ? '/: is a promise: await it first' : `${shorten(first?.path || '/')}: ${fault}`)
}

function expectation ({ type, message, schema, value }: ValueError): string {
  if (type === ValueErrorType.ObjectRequiredProperty) return 'is missing'
  if (type === ValueErrorType.Object) return `Expected ${formOf(schema)}, got ${kindOf(value)}`
  const literals = literalsOf(schema)
  return literals === null ? message : `Expected one of ${literals.join(', ')}`
}
