import type { OutgoingHttpHeaders } from 'node:http'
import type { Writable } from 'node:stream'
import type { MemoryBudget } from '../util/memory-budget.js'
import { TEXT_ENCODING, type Chunk } from './chunk.js'
import { closeTransport, isPlainChunked, sendHead, socketAhead, whenSocketClosed, type HttpResponse } from './http.js'

/** How a stream is opened and ended. */
export interface Opening {
  /** Response headers. Absent: the headers are already set on the response. */
  readonly headers?: OutgoingHttpHeaders
  /** Ends the destination. Absent: the response is ended. */
  readonly end?: () => void
}

/** The connection that a writer belongs to. */
export interface WriterOwner {
  /**
   * Whether the next write must wait for `onDrain`. Initially true; only the writer sets it. It is a property of the owner because
   * each event reads it.
   */
  blocked: boolean
  /** Handles an error of a wrapper of the response: the stream cannot continue. */
  onWriteError (error: unknown): void
  /** Handles that the destination accepts bytes again. */
  onDrain (): void
  /** Handles the end of the response, whatever the cause. Called at least once. */
  finish (): void
}

// Larger writes are split: bytes in Node's queue cannot be withdrawn, and each socket keeps its own copy.
const PIECE_BYTES = 64 * 1024
const kWriter = Symbol.for('fastify-sse-manager.writer')
// Shared listeners find their writer under this key, so that no connection needs a closure.
type Owned = { [kWriter]?: Writer | undefined }
type Compressor = Writable & { flush (): void }

/**
 * Writes the bytes of one stream to its client. If nothing wraps the response, HTTP chunks that all connections share are written
 * to the socket. Otherwise the same content is written to the response, or to the stream that wraps it.
 */
export class Writer {
  // The fields that each write uses come first.
  /** Whether the destination is the socket, to which HTTP chunks are written. */
  #framed = false
  /** Whether the destination buffers until it is flushed, as a compressor does. */
  #keeps = false
  #destination: Writable | null = null
  readonly #response: HttpResponse
  /** Remaining bytes of a chunk that is written in pieces, and that chunk. */
  #rest: Buffer | null = null
  #chunk: Chunk | null = null
  readonly #owner: WriterOwner
  readonly #budget: MemoryBudget
  #end: (() => void) | null = null
  /** Cancels the listener on the socket of a pipelined response. */
  readonly #leaveSocket: (() => void) | null

  /** @param budget the memory budget in which remaining bytes are counted */
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

  /** Whether a part of a large chunk waits for `onDrain`. */
  get hasRest (): boolean {
    return this.#rest !== null
  }

  /** Bytes that are not sent yet: remaining bytes of a large chunk, and bytes in Node's queue. */
  get queuedBytes (): number {
    return (this.#rest?.length ?? 0) + (this.#destination?.writableLength ?? 0)
  }

  /**
   * Sends the response headers and the first block, in one packet if possible.
   * @param destination the response, or a stream that is piped to it, such as a compressor
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
      // Also after a failure: the error response uses the same socket.
      socket?.uncork()
    }
  }

  /** Writes a chunk. Must not be called while the owner is blocked. */
  write (chunk: Chunk): void {
    if (this.#framed && chunk.bytes <= PIECE_BYTES) return this.#put(chunk.forOneMore())
    if (this.#response.writableEnded) return
    this.#writePiece(this.#framed ? chunk.framed : chunk.plain)
    if (this.#rest === null) return
    this.#chunk = chunk
    this.#budget.hold(chunk)
  }

  /** Writes the next piece of a large chunk. Returns false if there is none. */
  writeRest (): boolean {
    const rest = this.#rest
    if (rest === null) return false
    if (this.#response.writableEnded) {
      this.#abandonRest()
      return false
    }
    this.#rest = null
    this.#writePiece(rest)
    if (this.#rest === null) this.#dropRest()
    return true
  }

  /** Other code has ended the response in the middle of a chunk: its client would read the next response of the socket as the rest. */
  #abandonRest (): void {
    if (this.#framed && this.#rest !== null) this.#destination!.destroy()
    this.#dropRest()
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

  /** Writes to the destination. Text is written in `TEXT_ENCODING`. */
  #put (bytes: Buffer | string): void {
    // Other code has ended the response: bytes after the last chunk would be parsed as the next response.
    if (this.#response.writableEnded) return
    const destination = this.#destination!
    let room: unknown
    try {
      room = destination.write(bytes, TEXT_ENCODING)
      if (this.#keeps) (destination as Compressor).flush()
    } catch (error) {
      // Not thrown: one failing stream must not stop the flush of all others.
      return this.#owner.onWriteError(error)
    }
    // A wrapper may return undefined instead of a boolean. Then `writableNeedDrain` decides.
    if (room === true || (room !== false && !destination.writableNeedDrain)) return
    this.#owner.blocked = true
    destination.once('drain', onDrain)
  }

  /**
   * Writes the last chunk and ends the response after it is sent.
   * @param transportMs time in milliseconds after which the socket or session is closed at the latest; null keeps it open for reuse
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
    // Node treats an ended response as sent: a closing server would cut off bytes that a slow client has not read. So end it later.
    if (destination.writableLength > 0) return
    sent = true
    this.endResponse()
  }

  /** Ends the response without further bytes. */
  endResponse (): void {
    try {
      if (this.#end === null) this.#response.end()
      else this.#end()
    } catch (error) {
      this.#owner.onWriteError(error)
    }
  }

  /** Removes all listeners and references after the stream has ended. */
  release (): void {
    this.#response.off('close', onClose)
    ;(this.#response as Owned)[kWriter] = undefined
    this.#leaveSocket?.()
    this.#abandonRest()
    if (this.#destination !== null) {
      this.#destination.off('drain', onDrain)
      ;(this.#destination as Owned)[kWriter] = undefined
    }
    this.#destination = null
    this.#end = null
  }

  /** The connection that the writer belongs to. @internal */
  get owner (): WriterOwner {
    return this.#owner
  }
}

/** Returns whether the response is in use: its headers are sent, or it belongs to a stream. */
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

// Without a listener, a failed write after the end would crash the process. `close` follows in every case.
function onError (): void {}
