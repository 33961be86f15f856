/** The bytes of one write, made once for all connections: as an HTTP/1.1 chunk, and the same without its framing. */
export class Chunk {
  readonly framed: Buffer
  readonly plain: Buffer

  constructor (text: string) {
    const length = Buffer.byteLength(text)
    const prefix = length.toString(16) + '\r\n'
    this.framed = Buffer.allocUnsafe(prefix.length + length + 2)
    this.framed.write(prefix, 0, 'latin1')
    this.framed.write(text, prefix.length, 'utf8')
    this.framed.write('\r\n', prefix.length + length, 'latin1')
    this.plain = this.framed.subarray(prefix.length, prefix.length + length)
  }
}
