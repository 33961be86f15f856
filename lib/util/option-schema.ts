import { Type, TypeGuard, type Static, type TSchema } from '@sinclair/typebox'
import { ValueErrorType, type TypeCheck, type ValueError } from '@sinclair/typebox/compiler'
import { InvalidOption } from '../errors.js'
import { kindOf, shown } from './quote.js'
import { alternatives } from './suggestion.js'

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
  /** The fault of a string that does not match the pattern, such as `must begin with "/"`. */
  rule?: string
  /** The type in the public interface, if it is not that of the resolved options. */
  publicType?: string
}

// Builders of option schemas. `value` is the default, `description` the public documentation.
export const count = (description: string, value: number) => Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER, default: value, description })
export const durationMs = (description: string, value: number, minimum = 0, maximum = 2_147_483_647) => Type.Integer({ minimum, maximum, default: value, description })
export const bytes = (description: string, value: number, minimum = 1024) => Type.Integer({ minimum, maximum: 2 ** 31, default: value, description })
export const fn = <T>(description: string, marks: Marks = {}) => Type.Optional(Type.Unsafe<T>(Type.Function([], Type.Unknown(), { description, ...marks })))
export const any = <T>(description: string, marks: Marks = {}) => Type.Optional(Type.Unsafe<T>(Type.Unknown({ description, ...marks })))

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
  if (typeof given !== 'object' || given === null || Array.isArray(given)) return refuse(root, `must be an object${requiredOf(schema)}, got ${shown(given)}`)
  // A promise has no own properties: every option would take its default, and access would be open.
  if ('then' in given) return refuse(root, 'must be an object, not a promise of one: await it first')
  const options = withDefaults(schema, given as Record<string, unknown>, (path, { description }) => {
    refuse(prefix + path, `is undefined, which would remove a protection: set a value or omit the option${description === undefined ? '' : `: ${description}`}`)
  })
  if (!check.Check(options)) {
    const error = specific(firstOf(check.Errors(options)))
    return refuse(prefix + error.path.slice(1).replaceAll('/', '.'), faultOf(error))
  }
  return options
}

/** Returns the options without a default, for the error of a value that is no object: ` { ownerId }`. */
function requiredOf (schema: TSchema): string {
  const names = Object.entries(propertiesOf(schema)!).filter(([, property]) => !TypeGuard.IsOptional(property) && property.default === undefined)
  return names.length === 0 ? '' : ` { ${names.map(([name]) => name).join(', ')} }`
}

/** Returns the first error. An unknown name comes before others: it can be a missing one, misspelt. */
function firstOf (errors: Iterable<ValueError>): ValueError {
  const all = [...errors]
  return all.find(({ type }) => type === ValueErrorType.ObjectAdditionalProperties) ?? all[0]!
}

/** Returns the error of the variant of a union that has the type of the value; any other error unchanged. */
function specific (error: ValueError): ValueError {
  const { schema, value, errors } = error
  if (!TypeGuard.IsUnion(schema)) return error
  const meant = schema.anyOf.findIndex(variant => !TypeGuard.IsLiteral(variant) && variant.type === typeOf(value))
  return meant < 0 ? error : firstOf(errors[meant]!)
}

function typeOf (value: unknown): string {
  return Array.isArray(value) ? 'array' : value === null ? 'null' : typeof value
}

/** Returns the fault of an option, with the description of the option if it has one. */
function faultOf ({ type, path, schema, value }: ValueError): string {
  if (type === ValueErrorType.ObjectAdditionalProperties) return `is not an option${alternatives(path.slice(path.lastIndexOf('/') + 1), Object.keys(propertiesOf(schema)!))}`
  if (type === ValueErrorType.ObjectRequiredProperty) return `is missing: ${schema.description ?? `it must be ${formOf(schema)}`}`
  return faultOfValue(schema, value) + (schema.description === undefined ? '' : `: ${schema.description}`)
}

/** Returns whether values of the schema can be secrets: only texts can. A wrong value in place of one is not shown either. */
function mayBeText (schema: TSchema): boolean {
  return TypeGuard.IsString(schema) || (TypeGuard.IsArray(schema) && mayBeText(schema.items)) || (TypeGuard.IsUnion(schema) && schema.anyOf.some(mayBeText))
}

/** A text is counted and not shown if its length is wrong: it can be a secret. */
function faultOfValue (schema: TSchema, value: unknown): string {
  if (TypeGuard.IsArray(schema) && Array.isArray(value)) return faultOfSize(value.length, schema.minItems, schema.maxItems, 'items')
  if (!TypeGuard.IsString(schema) || typeof value !== 'string') return `must be ${propertiesOf(schema) === undefined ? '' : 'an object '}${formOf(schema)}, got ${mayBeText(schema) ? kindOf(value) : shown(value)}`
  const { length } = value
  const { minLength = 0, maxLength = Infinity } = schema
  return length < minLength || length > maxLength ? faultOfSize(length, minLength, maxLength, 'characters') : `${(schema as Marks).rule}, got ${shown(value)}`
}

function faultOfSize (size: number, minimum = 0, maximum = Infinity, unit: string): string {
  return `must have ${size < minimum ? `at least ${minimum}` : `at most ${maximum}`} ${(size < minimum ? minimum : maximum) === 1 ? unit.slice(0, -1) : unit}, has ${size}`
}

/** Returns what a value of a schema looks like: `"immediate" or { intervalMs }`. With `many`, the plural. */
export function formOf (schema: TSchema, many = false): string {
  if (TypeGuard.IsUnion(schema)) return schema.anyOf.map(variant => formOf(variant, many)).join(' or ')
  if (TypeGuard.IsLiteral(schema)) return JSON.stringify(schema.const)
  if (TypeGuard.IsArray(schema)) return `${many ? 'arrays' : 'an array'} of ${formOf(schema.items, true)}`
  if (TypeGuard.IsInteger(schema)) return `an integer from ${schema.minimum} to ${schema.maximum}`
  const properties = propertiesOf(schema)
  if (properties !== undefined && Object.keys(properties).length > 0) return `{ ${Object.keys(properties).join(', ')} }`
  const name = String(schema.type).toLowerCase()
  return many ? `${name}s` : `${/^[aeiou]/.test(name) ? 'an' : 'a'} ${name}`
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
