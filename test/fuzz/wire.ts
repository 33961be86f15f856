import { Duplex } from 'node:stream'

export interface WireOptions {
  /** Bytes that the network between server and client holds: what was sent and not yet read. */
  networkBytes: number
  /** Bytes that wait in the server's socket before `write` says so. */
  socketBytes: number
}

/**
 * The server's end of a connection that is made of memory: an HTTP server takes it as a socket, and how much its client
 * reads, and when, is decided to the byte.
 */
export class Wire extends Duplex {
  readonly remoteAddress = '127.0.0.1'
  readonly #networkBytes: number
  readonly #receive: (bytes: Buffer) => void
  readonly #inFlight: Buffer[] = []
  #bytes = 0
  #sent: (() => void) | null = null
  #scheduled = false
  #reading = true

  /** @param receive called with what the client reads. */
  constructor ({ networkBytes, socketBytes }: WireOptions, receive: (bytes: Buffer) => void) {
    super({ writableHighWaterMark: socketBytes })
    this.#networkBytes = networkBytes
    this.#receive = receive
    this.on('error', () => {})
  }

  /** Bytes on their way to the client. */
  get inFlight (): number {
    return this.#bytes
  }

  /** Whether the client reads all that comes, from now on. */
  flow (reading: boolean): void {
    this.#reading = reading
    if (reading) this.#schedule()
  }

  /** This many bytes reach the client, or what there is of them. */
  carry (count: number): void {
    while (count > 0 && this.#bytes > 0) {
      const first = this.#inFlight[0]!
      const piece = first.subarray(0, count)
      if (piece.length === first.length) this.#inFlight.shift()
      else this.#inFlight[0] = first.subarray(piece.length)
      this.#bytes -= piece.length
      count -= piece.length
      this.#receive(piece)
      this.#acknowledge()
    }
  }

  /** As of `net.Socket`: without it, an HTTP server only ends its half of the connection, and its parser holds the socket for ever. */
  destroySoon (): void {
    this.end(() => this.destroy())
  }

  /** The client has reset the connection: what is on its way is lost. */
  cut (): void {
    this.#inFlight.length = 0
    this.#bytes = 0
    this.destroy()
  }

  /** The client has ended its side. */
  finish (): void {
    if (!this.destroyed) this.push(null)
  }

  override _read (): void {}

  override _write (bytes: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.#inFlight.push(bytes)
    this.#bytes += bytes.length
    this.#sent = done
    this.#acknowledge()
    if (this.#reading) this.#schedule()
  }

  override _destroy (error: Error | null, done: (error: Error | null) => void): void {
    this.#sent = null
    done(error)
  }

  #acknowledge (): void {
    const sent = this.#sent
    if (sent === null || this.#bytes > this.#networkBytes) return
    this.#sent = null
    sent()
  }

  #schedule (): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      if (this.#reading) this.carry(Infinity)
    })
  }
}
