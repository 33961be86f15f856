import type { OutgoingHttpHeaders } from 'node:http'
import type { Writable } from 'node:stream'
import type { MemoryBudget } from '../util/memory-budget.js'
import { TEXT_ENCODING, type Chunk } from './chunk.js'
import { closeTransport, isPlainChunked, sendHead, socketAhead, whenSocketClosed, type HttpResponse } from './http.js'

/** How a stream begins and ends where it leads to. */
export interface Opening {
  /** Of the response, if they are not set yet. */
  readonly headers?: OutgoingHttpHeaders
  /** Ends what leads to the response. Absent: the response is ended. */
  readonly end?: () => void
}

/** Whose bytes a writer writes. */
export interface WriterOwner {
  /** Whether to wait for `onDrain` before the next write; true at first, and the writer's to set. It stands here, where each event looks at it. */
  blocked: boolean
  /** What wraps the response threw: the stream cannot go on. */
  onWriteError (error: unknown): void
  /** The destination takes bytes again. */
  onDrain (): void
  /** The response has closed: the end, whatever the cause. Called once or more. */
  finish (): void
}

// A write larger than this goes in pieces: what Node's own queue has cannot be taken back, and is kept for each socket apart.
const PIECE_BYTES = 64 * 1024
const kWriter = Symbol.for('fastify-sse-manager.writer')
// Listeners shared by all writers find theirs here: no closure per connection.
type Owned = { [kWriter]?: Writer | undefined }
type Compressor = Writable & { flush (): void }

/**
 * The way of one stream's bytes to its client. Where it can be, HTTP chunks made once for everybody go straight to the
 * socket; otherwise the same bytes go through the response, or through what wraps it.
 */
export class Writer {
  // What each write touches stands first.
  /** Whether the destination is the socket, which takes HTTP chunks. */
  #framed = false
  /** Whether the destination keeps what it is given until it is told otherwise, as a compressor does. */
  #keeps = false
  #destination: Writable | null = null
  readonly #response: HttpResponse
  /** What is being written in pieces, and what is left of it. */
  #rest: Buffer | null = null
  #chunk: Chunk | null = null
  readonly #owner: WriterOwner
  readonly #budget: MemoryBudget
  #end: (() => void) | null = null
  /** Ends the waiting for the socket of a pipelined response. */
  readonly #leaveSocket: (() => void) | null

  /** @param budget what is kept back counts in. */
  constructor (response: HttpResponse, owner: WriterOwner, budget: MemoryBudget) {
    this.#response = response
    this.#budget = budget
    this.#owner = owner
    ;(response as Owned)[kWriter] = this
    response.on('close', onClose)
    response.on('error', onError)
    const ahead = socketAhead(response)
    this.#leaveSocket = ahead === null ? null : whenSocketClosed(ahead, () => owner.finish())
  }

  /** Whether something is kept back for the next time the destination takes bytes. */
  get hasRest (): boolean {
    return this.#rest !== null
  }

  /** Bytes that wait: kept back, or in Node's own queue. */
  get queuedBytes (): number {
    return (this.#rest?.length ?? 0) + (this.#destination?.writableLength ?? 0)
  }

  /**
   * Sends the head and the first block, in one packet.
   * @param destination the response, or a stream that leads to it, such as a compressor.
   */
  open (destination: Writable, { headers, end }: Opening, first: Chunk): void {
    const response = this.#response
    this.#end = end ?? null
    const wrapped = destination as unknown !== response
    const socket = wrapped || 'stream' in response ? null : response.socket
    socket?.cork()
    try {
      if (wrapped) destination.on('error', onError)
      else sendHead(response, headers ?? null)
      this.#framed = !wrapped && isPlainChunked(response)
      const target: Writable = this.#framed ? response.socket! : destination
      this.#destination = target
      this.#keeps = 'flush' in target && typeof target.flush === 'function'
      ;(target as Owned)[kWriter] = this
      this.#owner.blocked = false
      this.write(first)
    } finally {
      // Also when the head cannot be written: whatever is answered then has the same socket.
      socket?.uncork()
    }
  }

  /** Writes a chunk. Only while not blocked. */
  write (chunk: Chunk): void {
    if (this.#framed && chunk.bytes <= PIECE_BYTES) return this.#put(chunk.forOneMore())
    this.#writePiece(this.#framed ? chunk.framed : chunk.plain)
    if (this.#rest === null) return
    this.#chunk = chunk
    this.#budget.hold(chunk)
  }

  /** Writes on from a chunk that was too large for one write. False when there is none. */
  writeRest (): boolean {
    const rest = this.#rest
    if (rest === null) return false
    this.#rest = null
    this.#writePiece(rest)
    if (this.#rest === null) this.#dropRest()
    return true
  }

  #dropRest (): void {
    this.#rest = null
    if (this.#chunk !== null) this.#budget.release(this.#chunk)
    this.#chunk = null
  }

  #writePiece (bytes: Buffer): void {
    if (bytes.length > PIECE_BYTES) {
      this.#rest = bytes.subarray(PIECE_BYTES)
      bytes = bytes.subarray(0, PIECE_BYTES)
    }
    this.#put(bytes)
  }

  /** Text is one byte a letter. */
  #put (bytes: Buffer | string): void {
    // Ended behind our back: bytes after the last chunk would be taken for the next response.
    if (this.#response.writableEnded) return
    const destination = this.#destination!
    let room: unknown
    try {
      room = destination.write(bytes, TEXT_ENCODING)
      if (this.#keeps) (destination as Compressor).flush()
    } catch (error) {
      // One application's stream must not stop the flush of all others.
      return this.#owner.onWriteError(error)
    }
    // A wrapper that returns nothing has not said that there is none: the destination is asked.
    if (room === true || (room !== false && !destination.writableNeedDrain)) return
    this.#owner.blocked = true
    destination.once('drain', onDrain)
  }

  /**
   * Writes the last chunk and ends the response once it is sent.
   * @param transportMs the socket or session goes too, at the latest after about that time; null leaves it to be used again.
   */
  end (last: Chunk, transportMs: number | null): void {
    const destination = this.#destination!
    const rest = this.#rest
    this.#dropRest()
    let sent = false
    try {
      if (rest !== null) destination.write(rest)
      destination.write(this.#framed ? last.framed : last.plain, () => { if (!sent && this.#destination !== null) this.endResponse() })
      if (transportMs !== null) closeTransport(this.#response, transportMs)
    } catch (error) {
      return this.#owner.onWriteError(error)
    }
    // Of a response that has been ended Node thinks that all is sent: a closing server would cut what a slow client has yet to read.
    if (destination.writableLength > 0) return
    sent = true
    this.endResponse()
  }

  /** Ends the response, with nothing more in it. */
  endResponse (): void {
    try {
      if (this.#end === null) this.#response.end()
      else this.#end()
    } catch (error) {
      this.#owner.onWriteError(error)
    }
  }

  /** Lets go of everything: the stream has ended. */
  release (): void {
    this.#response.off('close', onClose)
    ;(this.#response as Owned)[kWriter] = undefined
    this.#leaveSocket?.()
    if (this.#destination !== null) {
      this.#destination.off('drain', onDrain)
      ;(this.#destination as Owned)[kWriter] = undefined
    }
    this.#dropRest()
    this.#destination = null
    this.#end = null
  }

  /** @internal */
  get owner (): WriterOwner {
    return this.#owner
  }
}

/** Whether the response is a stream's already, or somebody else's. */
export function isTaken (response: HttpResponse): boolean {
  return response.headersSent || (response as Owned)[kWriter] !== undefined
}

function onClose (this: HttpResponse): void {
  (this as Owned)[kWriter]?.owner.finish()
}

function onDrain (this: Writable): void {
  const writer = (this as Owned)[kWriter]
  if (writer === undefined) return
  writer.owner.blocked = false
  writer.owner.onDrain()
}

// Without a listener a write that fails after the end would end the process; `close` follows in every case.
function onError (): void {}
