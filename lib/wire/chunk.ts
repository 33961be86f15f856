import { Buffer } from 'node:buffer'
import type { Held } from '../util/memory-budget.js'

/** Encoding of text that is written without a conversion: one byte per character. */
export const TEXT_ENCODING = 'latin1'

/** The content of one write, made once for all connections: as an HTTP/1.1 chunk, and without the framing. */
export class Chunk implements Held {
  /** Size of the HTTP/1.1 chunk in bytes. */
  readonly bytes: number
  /** Number of connections that hold the chunk. Only the budget changes it. */
  holders = 0
  readonly #prefixBytes: number
  /** The HTTP/1.1 chunk as text, until it is encoded. */
  #text: string
  #textLeft: boolean
  #framed: Buffer | null = null
  #plain: Buffer | null = null

  /**
   * @param text the content
   * @param bytes its size in UTF-8
   */
  constructor (text: string, bytes = Buffer.byteLength(text)) {
    const size = bytes.toString(16)
    this.#text = `${size}\r\n${text}\r\n`
    this.#prefixBytes = size.length + 2
    // A socket counts queued text in characters. Only for ASCII is that the number of bytes.
    this.#textLeft = bytes === text.length
    this.bytes = this.#prefixBytes + bytes + 2
  }

  /**
   * Returns the chunk for one more socket. The first socket gets ASCII text as a string, which takes half the time if it is the
   * only receiver. All others share one buffer.
   */
  forOneMore (): string | Buffer {
    if (!this.#textLeft) return this.framed
    this.#textLeft = false
    return this.#text
  }

  /** The HTTP/1.1 chunk as bytes. */
  get framed (): Buffer {
    if (this.#framed === null) {
      this.#framed = Buffer.from(this.#text)
      this.#text = ''
      this.#textLeft = false
    }
    return this.#framed
  }

  /** The content without framing, for destinations that do their own framing. */
  get plain (): Buffer {
    return (this.#plain ??= this.framed.subarray(this.#prefixBytes, -2))
  }
}

/** Remembers the last chunk, for texts that are written to many connections in a row. */
export class ChunkMemo {
  #text: string | null = null
  #chunk: Chunk | null = null

  /** Returns the chunk of a text. */
  of (text: string): Chunk {
    if (this.#chunk === null || text !== this.#text) {
      this.#text = text
      this.#chunk = new Chunk(text)
    }
    return this.#chunk
  }
}
