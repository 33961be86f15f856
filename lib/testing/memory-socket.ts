import { Duplex } from 'node:stream'
import { TestConnectionCut } from '../errors.js'

type Done = (error?: Error | null) => void

/** Buffer size of each end. It is small, so that a client that does not read causes backpressure soon. */
const BUFFER_BYTES = 16 * 1024
/** Interval between two parts of a rate-limited transfer. */
const STEP_MS = 10
const FIRST_PORT = 100_000

let ports = FIRST_PORT

/**
 * One end of a connection in memory. HTTP servers accept it as a socket, through their `connection` event. No bytes are buffered between
 * the ends, so that `stop()` and `limit()` take effect with the next byte.
 */
export class MemorySocket extends Duplex {
  readonly remoteAddress = '127.0.0.1'
  readonly remoteFamily = 'IPv4'
  readonly localAddress = '127.0.0.1'
  /** A number above all TCP ports, so that no network socket has the same port. */
  readonly remotePort = ++ports
  /** Bytes that this end has received. */
  bytesRead = 0
  #peer: MemorySocket | null = null
  /** Bytes that the other end has written and this end has not delivered; null for none. */
  #arriving: Buffer | null = null
  /** Whether the other end has ended. This end notices after the arriving bytes. */
  #isEnding = false
  /** Callback of the other end's pending write; null without one. */
  #taken: Done | null = null
  /** Whether the reader has requested bytes and not received any since then. */
  #asked = false
  #timer: NodeJS.Timeout | null = null
  #turn: NodeJS.Immediate | null = null
  #stopped = false
  #bytesPerSecond = Infinity

  private constructor () {
    super({ highWaterMark: BUFFER_BYTES })
  }

  /** Creates a connection, and returns the ends of client and server. */
  static pair (): [client: MemorySocket, server: MemorySocket] {
    const pair: [MemorySocket, MemorySocket] = [new MemorySocket(), new MemorySocket()]
    pair[0].#peer = pair[1]
    pair[1].#peer = pair[0]
    return pair
  }

  /** Whether bytes of the other end arrive in the next turn of the event loop. */
  get isArriving (): boolean {
    return this.#turn !== null
  }

  /** Stops reading from the other end until `start()`. */
  stop (): void {
    this.#stopped = true
  }

  /** Continues to read from the other end. */
  start (): void {
    this.#stopped = false
    this.#next()
  }

  /** Limits the rate at which this end reads from the other. */
  limit (bytesPerSecond: number): void {
    this.#bytesPerSecond = bytesPerSecond
  }

  override _read (): void {
    this.#asked = true
    this.#next()
  }

  override _write (chunk: Buffer, _encoding: BufferEncoding, done: Done): void {
    const peer = this.#peer
    if (peer === null || peer.destroyed) return done(reset())
    peer.#arriving = chunk
    peer.#taken = done
    peer.#next()
  }

  override _final (done: Done): void {
    if (this.#peer !== null) this.#peer.#end()
    done()
  }

  #end (): void {
    this.#isEnding = true
    this.#next()
  }

  /** The other end is destroyed: this end notices even after `stop()`, and does not receive what the other end still holds. */
  #lose (): void {
    if (this.#stopped) {
      this.#arriving = this.#taken = null
      this.#stopped = false
    }
    this.#end()
  }

  override _destroy (error: Error | null, done: Done): void {
    const peer = this.#peer
    if (this.#timer !== null) clearTimeout(this.#timer)
    const taken = this.#taken
    this.#arriving = this.#taken = null
    // The other end notices later, as with a network: by the end of the data, or by a reset.
    setImmediate(() => {
      taken?.(reset())
      if (peer === null || peer.destroyed) return
      peer.#peer = null
      if (error !== null) peer.destroy(reset())
      else peer.#lose()
    })
    done(error)
  }

  /**
   * Schedules the next delivery in a later turn of the event loop. Bytes of a network also never arrive inside the write that sent them.
   */
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
    return this.#asked && !this.#stopped && (this.#arriving !== null || this.#isEnding)
  }

  #deliver (step: number): void {
    if (!this.#canDeliver) return
    this.#asked = false
    const bytes = this.#arriving
    if (bytes === null) {
      this.push(null)
      return
    }
    const piece = bytes.subarray(0, Math.max(1, Math.floor(step)))
    this.bytesRead += piece.length
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

  // --- Methods of a socket that HTTP calls ---

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
  // HTTP servers recognize a disconnect by this code.
  return Object.assign(new TestConnectionCut(), { code: 'ECONNRESET' })
}
