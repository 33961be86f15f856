import type { Held } from './budget.js'

/** The bytes of one write, made once for all connections: as an HTTP/1.1 chunk, and the same without its framing. */
export class Chunk implements Held {
  readonly framed: Buffer
  holders = 0
  readonly #prefixBytes: number
  #plain: Buffer | null = null

  constructor (text: string, bytes = Buffer.byteLength(text)) {
    const size = bytes.toString(16)
    this.framed = Buffer.from(`${size}\r\n${text}\r\n`)
    this.#prefixBytes = size.length + 2
  }

  get bytes (): number {
    return this.framed.length
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
