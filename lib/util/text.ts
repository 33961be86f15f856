import { Buffer } from 'node:buffer'

/** V8 cuts a shorter piece out of its string; a longer one is a reference into it. */
const MIN_SLICE_LENGTH = 13
/** That a letter takes two bytes is of no weight up to here, beside what each string takes. */
const SHORT_LENGTH = 40

/**
 * The same text, in a string that keeps nothing else alive. V8's slices and concatenations keep the strings they were made of:
 * 64 letters cut from a body of 256 KB keep 256 KB.
 */
export function ownText (text: string): string {
  if (text.length < MIN_SLICE_LENGTH) return text
  // Of a text with any wide letter in it V8 keeps two bytes for each, also for a piece that has none.
  if (text.length > SHORT_LENGTH && Buffer.byteLength(text) === text.length) return Buffer.from(text, 'latin1').toString('latin1')
  // Of the ways to copy a short string that were measured, the fastest; one code unit is copied as it is, whatever it is half of.
  return [text.slice(0, 1), text.slice(1)].join('')
}

/** What a text takes in memory, in bytes, beside what each string takes; never less than it has in UTF-8. */
export function bytesOfText (text: string): number {
  return text.length <= SHORT_LENGTH ? text.length : memoryBytes(text.length, Buffer.byteLength(text))
}

/** The same of a text that has been measured. V8 keeps one byte for each letter of ASCII, and up to two of any other text. */
export function memoryBytes (length: number, utf8Bytes: number): number {
  return utf8Bytes === length ? length : Math.max(utf8Bytes, 2 * length)
}
