import { Type, TypeGuard, type Static, type TSchema } from '@sinclair/typebox'
import type { TypeCheck, ValueError } from '@sinclair/typebox/compiler'
import { InvalidOption } from '../errors.js'

// Reads options by a schema, which is their only description: types, ranges, defaults and marks.
//
// The rule for `undefined`: an option whose value is `undefined` has its default, as if it were absent. An option with the
// mark `protects` must not be `undefined`: without it more requests would be admitted, or more events received, because of a
// misspelt variable. The mark is on what decides who may connect and who receives what. It is not on limits, whose default
// is a choice of its own. Values that are not options follow the same rule: the `expiresAt` of users and tickets, the route
// option as a whole, and the lists and the filter of a broadcast, without which an event would reach more connections.

/** Properties of a schema that TypeBox does not know. */
export interface Marks {
  /** The option narrows who may connect, or who receives what. */
  protects?: true
  /** The option has an effect only in the plugin. */
  pluginOnly?: true
}

export const count = (description: string, value: number) => Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER, default: value, description })
export const durationMs = (description: string, value: number, minimum = 0, maximum = 2_147_483_647) => Type.Integer({ minimum, maximum, default: value, description })
export const bytes = (description: string, value: number, minimum = 1024) => Type.Integer({ minimum, maximum: 2 ** 31, default: value, description })
export const fn = <T>(description: string, marks: Marks = {}) => Type.Optional(Type.Unsafe<T>(Type.Function([], Type.Unknown(), { description, ...marks })))
export const any = <T>(description: string) => Type.Optional(Type.Unsafe<T>(Type.Unknown({ description })))

/** Where options stand: what their paths begin with, and the words between path and fault. */
export interface OptionsPlace {
  prefix?: string
  where?: string
}

/**
 * Fills in defaults and checks the result.
 * @throws SSE_ERR_INVALID_OPTION, which names the option: it is unknown, has a wrong type, or protects and is `undefined`.
 */
export function resolve<T extends TSchema> (schema: T, check: TypeCheck<T>, given: unknown, { prefix = '', where = '' }: OptionsPlace = {}): Static<T> {
  const refuse = (path: string, fault: string): never => { throw new InvalidOption(path, where + fault) }
  const root = prefix === '' ? '/' : prefix.slice(0, -1)
  if (typeof given !== 'object' || given === null || Array.isArray(given)) return refuse(root, 'must be an object')
  // A promise has no properties: all would be as the defaults say, open to everybody.
  if ('then' in given) return refuse(root, 'must be an object, not a promise of one: await it first')
  const options = withDefaults(schema, given as Record<string, unknown>, (path, { description }) => {
    refuse(prefix + path, `is undefined, which would take a protection away: give it a value or leave it out${description === undefined ? '' : `: ${description}`}`)
  })
  if (!check.Check(options)) {
    const error = check.Errors(options).First()!
    const fault = faultOf(error)
    const detail = error.type === 63 || error.schema.description === undefined ? fault : `${fault}: ${error.schema.description}`
    return refuse(prefix + error.path.slice(1).replaceAll('/', '.'), error.message === 'Unexpected property' ? 'is not an option' : detail)
  }
  return options
}

/** A union's own message says nothing. */
function faultOf ({ message, schema }: ValueError): string {
  if (!TypeGuard.IsUnion(schema)) return message
  const literals = literalsOf(schema)
  return literals === null ? 'has none of the forms that it may have' : `must be ${literals.join(' or ')}`
}

/** The values of a union of literals, as JSON; null for any other schema. */
export function literalsOf (schema: TSchema): string[] | null {
  return TypeGuard.IsUnion(schema) && schema.anyOf.every(TypeGuard.IsLiteral) ? schema.anyOf.map(literal => JSON.stringify(literal.const)) : null
}

/** Whether an option protects, or one within it does. */
export function protects (schema: TSchema): boolean {
  return schema['protects'] === true || Object.values(propertiesOf(schema) ?? {}).some(protects)
}

function propertiesOf (schema: TSchema): Record<string, TSchema> | undefined {
  return schema.properties as Record<string, TSchema> | undefined
}

function withDefaults (schema: TSchema, given: Record<string, unknown>, unprotected: (path: string, schema: TSchema) => void, path = ''): Record<string, unknown> {
  const properties = propertiesOf(schema)!
  const result: Record<string, unknown> = {}
  for (const [key, value] of Object.entries(given)) {
    const property = Object.hasOwn(properties, key) ? properties[key] : undefined
    // An unknown name stays, whatever its value, and is refused.
    if (value !== undefined || property === undefined) result[key] = value
    else if (protects(property)) unprotected(path + key, property)
  }
  for (const [key, property] of Object.entries(properties)) {
    if (result[key] === undefined && property.default !== undefined) result[key] = property.default
    const value = result[key]
    if (propertiesOf(property) !== undefined && typeof value === 'object' && value !== null && !Array.isArray(value)) result[key] = withDefaults(property, value as Record<string, unknown>, unprotected, `${path}${key}.`)
  }
  // Filled one by one, it has become a dictionary to the engine, slow to read at each event; a copy is an object again.
  return { ...result }
}
