import { Buffer } from 'node:buffer'
import type { Held } from '../util/memory-budget.js'

/** Of text that is written as it is: one byte a letter. */
export const TEXT_ENCODING = 'latin1'

/** What one write carries, made once for all connections: as an HTTP/1.1 chunk, and the same without its framing. */
export class Chunk implements Held {
  /** Of the HTTP/1.1 chunk. */
  readonly bytes: number
  holders = 0
  readonly #prefixBytes: number
  /** The HTTP/1.1 chunk, until there are bytes of it. */
  #text: string
  #textLeft: boolean
  #framed: Buffer | null = null
  #plain: Buffer | null = null

  constructor (text: string, bytes = Buffer.byteLength(text)) {
    const size = bytes.toString(16)
    this.#text = `${size}\r\n${text}\r\n`
    this.#prefixBytes = size.length + 2
    // A socket counts text by the letter: only of ASCII is that as many bytes.
    this.#textLeft = bytes === text.length
    this.bytes = this.#prefixBytes + bytes + 2
  }

  /**
   * What one more socket is to write: ASCII text for the first, in `TEXT_ENCODING`, which costs half if it is the only one; for
   * all others bytes that they share.
   */
  forOneMore (): string | Buffer {
    if (!this.#textLeft) return this.framed
    this.#textLeft = false
    return this.#text
  }

  get framed (): Buffer {
    if (this.#framed === null) {
      this.#framed = Buffer.from(this.#text)
      this.#text = ''
      this.#textLeft = false
    }
    return this.#framed
  }

  /** Only where the destination does its own framing: most streams never ask for it. */
  get plain (): Buffer {
    return (this.#plain ??= this.framed.subarray(this.#prefixBytes, -2))
  }
}

/** The last chunk that was made, for as long as the same is asked for. */
export class ChunkMemo {
  #text: string | null = null
  #chunk: Chunk | null = null

  of (text: string): Chunk {
    if (this.#chunk === null || text !== this.#text) {
      this.#text = text
      this.#chunk = new Chunk(text)
    }
    return this.#chunk
  }
}
