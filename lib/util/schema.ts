import { Type, TypeGuard, type Static, type TSchema } from '@sinclair/typebox'
import type { TypeCheck, ValueError } from '@sinclair/typebox/compiler'
import { InvalidOption } from '../errors.js'
import { suggestion } from './suggestion.js'

// A schema is the only definition of options: types, ranges, defaults and marks.
//
// An option whose value is `undefined` takes its default, as if it were absent. An option with the mark `protects` must not be
// `undefined`: a misspelt variable would otherwise admit more requests or deliver more events. The mark is set on options that
// restrict access or delivery. It is not set on limits: their default is a deliberate choice.
// Values outside the options follow the same rule: `expiresAt` of users and tickets, the route option as a whole, and the lists
// and the filter of a broadcast.

/** Properties of a schema that TypeBox does not define. */
export interface Marks {
  /** The option restricts who can connect or who receives an event. */
  protects?: true
  /** The option has an effect only in the plugin. */
  pluginOnly?: true
}

// Builders of option schemas. `value` is the default, `description` the public documentation.
export const count = (description: string, value: number) => Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER, default: value, description })
export const durationMs = (description: string, value: number, minimum = 0, maximum = 2_147_483_647) => Type.Integer({ minimum, maximum, default: value, description })
export const bytes = (description: string, value: number, minimum = 1024) => Type.Integer({ minimum, maximum: 2 ** 31, default: value, description })
export const fn = <T>(description: string, marks: Marks = {}) => Type.Optional(Type.Unsafe<T>(Type.Function([], Type.Unknown(), { description, ...marks })))
export const any = <T>(description: string) => Type.Optional(Type.Unsafe<T>(Type.Unknown({ description })))

/** Context for the error messages of `resolve`. */
export interface OptionsPlace {
  /** Prefix of every option path, such as `broker.`. Default: empty. */
  prefix?: string
  /** Text between the option path and the fault. Default: empty. */
  where?: string
}

/**
 * Fills in defaults, validates the options and returns them as a new object.
 * @throws SSE_ERR_INVALID_OPTION for an unknown option, a wrong type, or an option with the mark `protects` that is `undefined`.
 */
export function resolve<T extends TSchema> (schema: T, check: TypeCheck<T>, given: unknown, { prefix = '', where = '' }: OptionsPlace = {}): Static<T> {
  const refuse = (path: string, fault: string): never => { throw new InvalidOption(path, where + fault) }
  const root = prefix === '' ? '/' : prefix.slice(0, -1)
  if (typeof given !== 'object' || given === null || Array.isArray(given)) return refuse(root, 'must be an object')
  // A promise has no own properties: every option would take its default, and access would be open.
  if ('then' in given) return refuse(root, 'must be an object, not a promise of one: await it first')
  const options = withDefaults(schema, given as Record<string, unknown>, (path, { description }) => {
    refuse(prefix + path, `is undefined, which would take a protection away: give it a value or leave it out${description === undefined ? '' : `: ${description}`}`)
  })
  if (!check.Check(options)) {
    const error = check.Errors(options).First()!
    const fault = faultOf(error)
    const detail = error.type === 63 || error.schema.description === undefined ? fault : `${fault}: ${error.schema.description}`
    return refuse(prefix + error.path.slice(1).replaceAll('/', '.'), error.message === 'Unexpected property' ? `is not an option${suggestion(nameIn(error.path), namesIn(schema, error.path))}` : detail)
  }
  return options
}

/** Returns the message of a validation error. TypeBox's message for a union does not name the alternatives. */
function faultOf ({ message, schema }: ValueError): string {
  if (!TypeGuard.IsUnion(schema)) return message
  return `must be ${formOf(schema)}`
}

/** Returns what a value of a schema looks like: `"immediate" or { intervalMs }`. */
function formOf (schema: TSchema): string {
  if (TypeGuard.IsUnion(schema)) return schema.anyOf.map(formOf).join(' or ')
  if (TypeGuard.IsLiteral(schema)) return JSON.stringify(schema.const)
  if (TypeGuard.IsArray(schema)) return `an array of ${formOf(schema.items)}s`
  if (TypeGuard.IsFunction(schema)) return 'a function'
  const properties = propertiesOf(schema)
  return properties === undefined ? String(schema.type ?? 'any value') : `{ ${Object.keys(properties).join(', ')} }`
}

function nameIn (path: string): string {
  return path.slice(path.lastIndexOf('/') + 1)
}

/** Returns the names that an object may have beside the one at this path. */
function namesIn (schema: TSchema, path: string): string[] {
  let place: TSchema | undefined = schema
  for (const name of path.split('/').slice(1, -1)) place = propertiesOf(place ?? schema)?.[name]
  return Object.keys(propertiesOf(place ?? schema) ?? {})
}

/** Returns the values of a union of literals as JSON, or null for any other schema. */
export function literalsOf (schema: TSchema): string[] | null {
  return TypeGuard.IsUnion(schema) && schema.anyOf.every(TypeGuard.IsLiteral) ? schema.anyOf.map(literal => JSON.stringify(literal.const)) : null
}

/** Returns whether an option, or any option nested in it, has the mark `protects`. */
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
    // Unknown names stay, even with the value `undefined`, so that the check rejects them.
    if (value !== undefined || property === undefined) result[key] = value
    else if (protects(property)) unprotected(path + key, property)
  }
  for (const [key, property] of Object.entries(properties)) {
    if (result[key] === undefined && property.default !== undefined) result[key] = property.default
    const value = result[key]
    if (propertiesOf(property) !== undefined && typeof value === 'object' && value !== null && !Array.isArray(value)) result[key] = withDefaults(property, value as Record<string, unknown>, unprotected, `${path}${key}.`)
  }
  // V8 turned the object into a dictionary while it was filled, which makes each read slow. A copy has fast properties again.
  return { ...result }
}
