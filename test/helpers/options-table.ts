import type { TSchema } from '@sinclair/typebox'
import type { Member } from './compiler.js'

/** README's table of the options of a schema. */
export function optionsTable (options: TSchema): string {
  const rows = ['| Option | Type | Default | Meaning |', '|---|---|---|---|']
  const add = (schema: TSchema, prefix: string) => {
    for (const [name, property] of Object.entries(schema.properties as Record<string, TSchema>)) {
      const path = prefix + name
      const standard = property.properties !== undefined || property.default === undefined ? '' : code(property.default)
      rows.push(`| \`${path}\` | ${typeOf(property)} | ${standard} | ${property.description} |`)
      if (property.properties !== undefined) add(property, `${path}.`)
    }
  }
  add(options, '')
  return rows.join('\n')
}

/**
 * The table of options that are declared as an interface.
 * @param where what takes an option, for a column of its own.
 */
export function membersTable (members: readonly Member[], where?: (name: string) => string): string {
  const row = (...cells: (string | undefined)[]) => `| ${cells.filter(cell => cell !== undefined).join(' | ')} |`
  const typed = (type: string) => type.split(' | ').filter(each => each !== 'undefined').map(each => each === 'function' ? each : `\`${each}\``).join(' or ')
  return [
    row('Option', where && 'In', 'Type', 'Meaning'),
    `|${'---|'.repeat(where === undefined ? 3 : 4)}`,
    ...members.map(({ name, type, documentation }) => row(`\`${name}\``, where?.(name), typed(type), documentation))
  ].join('\n')
}

/**
 * The options of a schema as an interface, each with its meaning, range and default: a type that is inferred from a schema has none to show.
 * @param resolved the type that is inferred.
 */
export function optionsInterface (name: string, about: string, options: TSchema, resolved: string): string {
  const members = (schema: TSchema, type: string, indent: string): string[] => Object.entries(schema.properties as Record<string, TSchema>).flatMap(([name, property]) => {
    const nested = property.properties !== undefined
    const range = property.type === 'integer' ? ` ${typeOf(property).replace(/^i/, 'I')}.` : ''
    const standard = nested || property.default === undefined ? '' : ` Default ${code(property.default)}.`
    const required = (schema.required as string[]).includes(name) && property.default === undefined
    const member = `${indent}${name}${required ? '' : '?'}: `
    // An option that protects must not be undefined: a misspelt variable would remove a protection.
    const absent = required || property.protects === true ? '' : ' | undefined'
    const own = `${type}['${name}']`
    const given = property.publicType ?? (property.protects === true && property.default === undefined ? `NonNullable<${own}>` : own)
    return [
      ...comment(`${property.description}${range}${standard}`, indent),
      ...nested ? [`${member}{`, ...members(property, `${type}['${name}']`, `${indent}  `), `${indent}}${absent}`] : [`${member}${given}${absent}`]
    ]
  })
  return [...comment(about, ''), `export interface ${name} {`, ...members(options, resolved, '  '), '}'].join('\n')
}

function comment (text: string, indent: string): string[] {
  if (text.length < 120) return [`${indent}/** ${text} */`]
  const lines = Array.from(text.matchAll(/(.{1,120})(?: |$)/g), ([, line]) => `${indent} * ${line}`)
  return [`${indent}/**`, ...lines, `${indent} */`]
}

function typeOf (schema: TSchema): string {
  if (schema.anyOf !== undefined) return (schema.anyOf as TSchema[]).map(typeOf).join(' or ')
  if (schema.const !== undefined) return code(schema.const)
  if (schema.properties !== undefined) {
    const names = Object.keys(schema.properties as object)
    return names.length === 1 ? `\`{ ${names[0]} }\`` : 'object'
  }
  if (schema.type === 'array') return Array.isArray(schema.items?.anyOf) ? 'array of functions' : `array of ${typeOf(schema.items as TSchema)}s`
  if (schema.type === 'integer') return schema.maximum >= 2 ** 31 - 1 ? `integer from ${number(schema.minimum)}` : `integer, ${number(schema.minimum)} to ${number(schema.maximum)}`
  return String(schema.type ?? 'object').toLowerCase()
}

function code (value: unknown): string {
  return `\`${typeof value === 'string' ? `'${value}'` : typeof value === 'number' ? number(value) : JSON.stringify(value)}\``
}

function number (value: number): string {
  return String(value).replace(/\B(?=(?:\d{3})+$)/g, '_')
}
