/** Length to which texts in error messages are cut. */
const MAX_LENGTH = 80

/** Cuts a text of any length for an error message. */
export function shorten (text: string): string {
  return text.length > MAX_LENGTH ? `${text.slice(0, MAX_LENGTH)}…` : text
}

/** Formats the subject of an error message: a string as JSON, shortened; any other value as its type. */
export function quote (value: unknown): string {
  return typeof value === 'string' ? JSON.stringify(shorten(value)) : `of type ${typeof value}`
}

/** Formats a value for "got …": a string as JSON, shortened; a number, a boolean, null or undefined as itself; any other value as its kind. */
export function shown (value: unknown): string {
  if (typeof value === 'string') return quote(value)
  return typeof value === 'number' || typeof value === 'boolean' ? String(value) : kindOf(value)
}

/** Returns the kind of a value for "got …", such as `a string`. The text does not depend on the content of the value, which can be secret. */
export function kindOf (value: unknown): string {
  if (value === null || value === undefined) return String(value)
  if (value instanceof Promise) return 'a promise'
  return Array.isArray(value) ? 'an array' : typeof value === 'object' ? 'an object' : `a ${typeof value}`
}
