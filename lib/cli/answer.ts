import type { IncomingMessage } from 'node:http'
import type { ClientHttp2Stream } from 'node:http2'
import type { Transform } from 'node:stream'
import { constants, createBrotliDecompress, createGunzip, createInflate } from 'node:zlib'
import { systemClock } from '../util/clock.js'

export type HeaderValues = Readonly<Record<string, string | string[] | undefined>>

/** How a body ends: the server ends the response, the connection is cut, or the rest cannot be read. */
export type BodyEnd = 'end' | 'cut' | 'garbled'

export interface Head {
  readonly url: URL
  readonly status: number
  readonly version: '1.0' | '1.1' | '2'
  /** Time to the connection, TLS included, in milliseconds. */
  readonly connectMs: number
  /** Time from the connection to the headers, in milliseconds. */
  readonly headMs: number
  readonly headers: HeaderValues
}

// What has arrived is decompressed at once, and the end of a connection that is cut is no error.
const ZLIB = { flush: constants.Z_SYNC_FLUSH, finishFlush: constants.Z_SYNC_FLUSH }
const BROTLI = { flush: constants.BROTLI_OPERATION_FLUSH, finishFlush: constants.BROTLI_OPERATION_FLUSH }
const DECOMPRESSORS = new Map<string, () => Transform>([
  ['gzip', () => createGunzip(ZLIB)],
  ['x-gzip', () => createGunzip(ZLIB)],
  ['deflate', () => createInflate(ZLIB)],
  ['br', () => createBrotliDecompress(BROTLI)]
])
/** Longest text that is read of a body that is not a stream, in characters. */
const MAX_CHARS = 16_384

/** The headers of an answer, whose body has not been read. */
export class Answer {
  readonly head: Head
  /** Why the rest of the body cannot be read; empty if it can. */
  fault = ''
  readonly #body: IncomingMessage | ClientHttp2Stream
  readonly #disconnect: () => void
  #decompressor: Transform | null = null

  constructor (head: Head, body: IncomingMessage | ClientHttp2Stream, disconnect: () => void) {
    this.head = head
    this.#body = body
    this.#disconnect = disconnect
  }

  /** Returns a header; empty if it is missing. */
  header (name: string): string {
    const value = this.head.headers[name]
    return Array.isArray(value) ? value.join(', ') : value ?? ''
  }

  get cookies (): readonly string[] {
    const value = this.head.headers['set-cookie'] ?? []
    return typeof value === 'string' ? [value] : value
  }

  /** The encoding of the body; empty for a body that is not compressed. */
  get compression (): string {
    return this.header('content-encoding').toLowerCase().trim().replace(/^identity$/, '')
  }

  /** Whether this encoding can be read. */
  get isDecodable (): boolean {
    return this.compression === '' || DECOMPRESSORS.has(this.compression)
  }

  /** Disconnects. Nothing is read any more. */
  readonly close = (): void => {
    this.#disconnect()
    this.#decompressor?.destroy()
  }

  /** Ends the body, whose rest cannot be read. */
  readonly fail = ({ message }: Error): void => {
    this.fault = message
    this.close()
  }

  /** Reads the decompressed body. Resolves when it ends. */
  async read (onText: (text: string) => void): Promise<BodyEnd> {
    const body = this.#body
    // The parser removes the byte order mark.
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
    const take = (bytes: Uint8Array): void => {
      const text = decoder.decode(bytes, { stream: true })
      if (text !== '') onText(text)
    }
    const decompressor = this.#decompressor = DECOMPRESSORS.get(this.compression)?.() ?? null
    if (decompressor === null) body.on('data', take)
    // A pipe waits for the decompressor, so that a small body whose text is huge is never in memory as a whole.
    else body.pipe(decompressor).on('data', take).on('error', this.fail)
    let hasEnded = false
    body.on('end', () => { hasEnded = true })
    await new Promise<void>(resolve => { body.on('close', resolve) })
    if (decompressor !== null && !decompressor.destroyed) await new Promise<void>(resolve => { decompressor.on('close', resolve).end() })
    if (this.fault !== '') return 'garbled'
    const isBroken = 'rstCode' in body ? body.aborted || (body.rstCode ?? 0) !== 0 : !body.complete
    return hasEnded && !isBroken ? 'end' : 'cut'
  }

  /** Reads the beginning of a body that should end, for at most this time. */
  async text (timeoutMs: number): Promise<string> {
    let text = ''
    const timer = systemClock.after(timeoutMs, this.close)
    await this.read(part => {
      text += part
      if (text.length > MAX_CHARS) this.close()
    })
    systemClock.cancel(timer)
    return text
  }
}
