import { Duplex } from 'node:stream'
import { TestConnectionCut } from '../errors.js'

type Done = (error?: Error | null) => void

/** As much as a side keeps that its reader has not asked for: little, so that a client that reads nothing is felt at once. */
const BUFFER_BYTES = 16 * 1024
/** A limited rate is kept in steps of this length. */
const STEP_MS = 10
const FIRST_PORT = 100_000

let ports = FIRST_PORT

/**
 * One end of a connection that exists in this process only: HTTP servers accept such a stream by their `connection` event.
 * Nothing is buffered between the ends, so `stop()` and `limit()` of the reader hold from the next byte on.
 */
export class MemorySocket extends Duplex {
  readonly remoteAddress = '127.0.0.1'
  readonly remoteFamily = 'IPv4'
  readonly localAddress = '127.0.0.1'
  /** Above all ports of TCP: no socket of a network has it. */
  readonly remotePort = ++ports
  bytesRead = 0
  #peer: MemorySocket | null = null
  /** What the other end has written and this one has not delivered yet. */
  #arriving: Buffer | null = null
  #taken: Done | null = null
  /** Whether the reader has asked for bytes and not received any since. */
  #asked = false
  #timer: NodeJS.Timeout | null = null
  #turn: NodeJS.Immediate | null = null
  #stopped = false
  #bytesPerSecond = Infinity

  private constructor () {
    super({ highWaterMark: BUFFER_BYTES })
  }

  /** The client's end and the server's. */
  static pair (): [client: MemorySocket, server: MemorySocket] {
    const pair: [MemorySocket, MemorySocket] = [new MemorySocket(), new MemorySocket()]
    pair[0].#peer = pair[1]
    pair[1].#peer = pair[0]
    return pair
  }

  /** Whether bytes of the other end arrive in the next turn. */
  get isArriving (): boolean {
    return this.#turn !== null
  }

  /** Takes no byte from the other end until `start()`. */
  stop (): void {
    this.#stopped = true
  }

  start (): void {
    this.#stopped = false
    this.#next()
  }

  /** Bounds what this end takes from the other. */
  limit (bytesPerSecond: number): void {
    this.#bytesPerSecond = bytesPerSecond
  }

  override _read (): void {
    this.#asked = true
    this.#next()
  }

  override _write (chunk: Buffer, _encoding: BufferEncoding, done: Done): void {
    const peer = this.#peer
    if (peer === null) return done(reset())
    peer.#arriving = chunk
    peer.#taken = done
    peer.#next()
  }

  override _final (done: Done): void {
    // Behind what was written: that has been taken by now.
    setImmediate(() => {
      this.#peer?.push(null)
      done()
    })
  }

  override _destroy (error: Error | null, done: Done): void {
    const peer = this.#peer
    this.#peer = null
    if (this.#timer !== null) clearTimeout(this.#timer)
    if (this.#turn !== null) clearImmediate(this.#turn)
    const taken = this.#taken
    this.#arriving = this.#taken = null
    // The other end learns of it as from a network: later, by the end of what it reads, or by a reset.
    setImmediate(() => {
      taken?.(reset())
      if (peer === null || peer.destroyed) return
      peer.#peer = null
      if (error !== null) peer.destroy(reset())
      else peer.push(null)
    })
    done(error)
  }

  /** In a turn of its own, as bytes of a network arrive: never from inside the write that sent them. */
  #next (): void {
    if (this.#timer !== null || this.#turn !== null || !this.#canDeliver) return
    const step = this.#bytesPerSecond * STEP_MS / 1000
    if (step === Infinity) {
      this.#turn = setImmediate(() => {
        this.#turn = null
        this.#deliver(step)
      })
    } else {
      this.#timer = setTimeout(() => {
        this.#timer = null
        this.#deliver(step)
      }, step < 1 ? STEP_MS / step : STEP_MS)
    }
  }

  get #canDeliver (): boolean {
    return this.#asked && !this.#stopped && this.#arriving !== null
  }

  #deliver (step: number): void {
    if (!this.#canDeliver) return
    const bytes = this.#arriving!
    const piece = bytes.subarray(0, Math.max(1, Math.floor(Math.min(step, bytes.length))))
    this.bytesRead += piece.length
    this.#asked = false
    if (piece.length < bytes.length) {
      this.#arriving = bytes.subarray(piece.length)
      this.push(piece)
      return
    }
    const taken = this.#taken
    this.#arriving = this.#taken = null
    this.push(piece)
    taken?.()
  }

  // --- What HTTP asks of a socket ---

  destroySoon (): void {
    if (this.writable) this.end()
    if (this.writableFinished) this.destroy()
    else this.once('finish', () => this.destroy())
  }

  resetAndDestroy (): this {
    this.once('error', () => {})
    return this.destroy(reset())
  }

  setTimeout (): this { return this }
  setNoDelay (): this { return this }
  setKeepAlive (): this { return this }
  ref (): this { return this }
  unref (): this { return this }
}

function reset (): Error {
  // By this code an HTTP server knows that there is nobody to answer.
  return Object.assign(new TestConnectionCut(), { code: 'ECONNRESET' })
}
