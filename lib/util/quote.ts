/** Formats a value for an error message: a string as JSON, cut after 80 characters; any other value as its type. */
export function quote (value: unknown): string {
  return typeof value === 'string' ? JSON.stringify(value.length > 80 ? value.slice(0, 80) + '…' : value) : `of type ${typeof value}`
}
