/** Decodes the strings and bytes of one source. If an item ends within a character, the next string or the next bytes complete it. */
export class ItemDecoder {
  readonly #decoder = new TextDecoder()
  /** The first half of a surrogate pair with which the last string ended. */
  #half = ''

  /** Returns null if nothing is complete yet. */
  decode (item: string | Uint8Array): string | null {
    if (typeof item !== 'string') return this.#decoder.decode(item, { stream: true }) || null
    if (this.#half === '' && !endsInHalf(item)) return item
    const text = this.#half + item
    this.#half = endsInHalf(text) ? text.slice(-1) : ''
    return text.slice(0, text.length - this.#half.length) || null
  }

  /** Returns what no item has completed; null for nothing. */
  end (): string | null {
    return this.#half + this.#decoder.decode() || null
  }
}

function endsInHalf (text: string): boolean {
  return (text.charCodeAt(text.length - 1) & 0xfc00) === 0xd800
}
