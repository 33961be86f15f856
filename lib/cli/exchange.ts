import { request as requestHTTP, type IncomingMessage } from 'node:http'
import { connect as connectHTTP2, type ClientHttp2Stream } from 'node:http2'
import { request as requestHTTPS } from 'node:https'
import { isIP } from 'node:net'
import { connect as connectTLS, type TLSSocket } from 'node:tls'
import { constants, createBrotliDecompress, createGunzip, createInflate } from 'node:zlib'
import { systemClock } from '../util/clock.js'

/** As in browsers. The limit of Node.js is 16 KB. */
const MAX_HEADER_BYTES = 256 * 1024

export interface Question {
  readonly url: URL
  readonly method?: string
  /** By lower-case name. */
  readonly headers: Readonly<Record<string, string>>
  /** Longest time to the headers of the answer, in milliseconds. */
  readonly timeoutMs: number
}

/** Why there is no answer: no connection, or a connection on which nothing arrives. */
export interface Failure {
  readonly failure: 'unreachable' | 'silent'
  /** Code of the error of Node.js, such as `ECONNREFUSED`. */
  readonly code: string
  readonly message: string
}

type HeaderValues = Readonly<Record<string, string | string[] | undefined>>

/** The headers of an answer, whose body has not been read. */
export class Answer {
  readonly url: URL
  readonly status: number
  readonly version: '1.0' | '1.1' | '2'
  /** Time from the beginning of the request, in milliseconds. */
  readonly headMs: number
  readonly #disconnect: () => void
  readonly #headers: HeaderValues
  readonly #body: IncomingMessage | ClientHttp2Stream
  #decompressor: ReturnType<typeof decompressorOf> = null

  constructor (url: URL, status: number, version: string, headMs: number, headers: HeaderValues, body: IncomingMessage | ClientHttp2Stream, disconnect: () => void) {
    this.url = url
    this.status = status
    this.version = version as '1.0' | '1.1' | '2'
    this.headMs = headMs
    this.#disconnect = disconnect
    this.#headers = headers
    this.#body = body
  }

  /** Returns a header; empty if it is missing. */
  header (name: string): string {
    const value = this.#headers[name]
    return Array.isArray(value) ? value.join(', ') : value ?? ''
  }

  get cookies (): readonly string[] {
    const value = this.#headers['set-cookie'] ?? []
    return typeof value === 'string' ? [value] : value
  }

  /** The encoding of the body; empty for a body that is not compressed. */
  get compression (): string {
    return this.header('content-encoding').toLowerCase().replace('identity', '')
  }

  /** Disconnects. Nothing is read any more. */
  readonly close = (): void => {
    this.#disconnect()
    this.#decompressor?.destroy()
  }

  /** Reads the decompressed body. Resolves when it ends: whether the server has ended the response, or the connection was cut. */
  async read (onText: (text: string) => void): Promise<'end' | 'cut'> {
    const body = this.#body
    // The parser removes the byte order mark.
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
    const take = (bytes: Uint8Array): void => {
      const text = decoder.decode(bytes, { stream: true })
      if (text !== '') onText(text)
    }
    const decompressor = this.#decompressor = decompressorOf(this.compression)
    if (decompressor === null) body.on('data', take)
    // A pipe waits for the decompressor, so that a small body whose text is huge is never in memory as a whole.
    else body.pipe(decompressor).on('data', take).on('error', () => { body.resume() })
    let hasEnded = false
    body.on('end', () => { hasEnded = true })
    await new Promise<void>(resolve => { body.on('close', resolve) })
    if (decompressor !== null && !decompressor.destroyed) await new Promise<void>(resolve => { decompressor.on('close', resolve).end() })
    const isBroken = 'rstCode' in body ? body.aborted || (body.rstCode ?? 0) !== 0 : !body.complete
    return hasEnded && !isBroken ? 'end' : 'cut'
  }

  /** Reads the beginning of a body that should end, for at most this time. */
  async text (timeoutMs: number): Promise<string> {
    let text = ''
    const timer = systemClock.after(timeoutMs, this.close)
    await this.read(part => {
      text += part
      if (text.length > 16_384) this.close()
    })
    systemClock.cancel(timer)
    return text
  }
}

function decompressorOf (encoding: string) {
  const flush = { flush: constants.Z_SYNC_FLUSH }
  if (encoding === 'gzip') return createGunzip(flush)
  if (encoding === 'deflate') return createInflate(flush)
  if (encoding === 'br') return createBrotliDecompress({ flush: constants.BROTLI_OPERATION_FLUSH })
  return null
}

/** Sends a request, and waits for the headers of the answer. Negotiates HTTP/2 over TLS as browsers do, and follows no redirect. */
export async function ask (question: Question): Promise<Answer | Failure> {
  const attempt = new Attempt(question)
  let timer
  const limit = new Promise<Failure>(resolve => {
    timer = systemClock.after(question.timeoutMs, () => resolve(attempt.isConnected
      ? { failure: 'silent', code: 'ETIMEDOUT', message: `no answer within ${question.timeoutMs} ms` }
      : { failure: 'unreachable', code: 'ETIMEDOUT', message: `no connection within ${question.timeoutMs} ms` }))
  })
  const answer = attempt.send().catch((error: NodeJS.ErrnoException): Failure => ({ failure: 'unreachable', code: error.code ?? '', message: error.message }))
  const result = await Promise.race([answer, limit])
  systemClock.cancel(timer)
  if ('failure' in result) attempt.close()
  return result
}

/** One request, on a connection of its own. */
class Attempt {
  isConnected = false
  readonly #question: Question
  readonly #startedAt = systemClock.monotonic()
  readonly #destroy: (() => void)[] = []

  constructor (question: Question) {
    this.#question = question
  }

  async send (): Promise<Answer> {
    if (this.#question.url.protocol === 'http:') return await this.#send1(null)
    const socket = await this.#connectTLS()
    return socket.alpnProtocol === 'h2' ? await this.#send2(socket) : await this.#send1(socket)
  }

  readonly close = (): void => {
    for (const destroy of this.#destroy) destroy()
  }

  #connectTLS (): Promise<TLSSocket> {
    const { hostname, port } = this.#question.url
    const host = hostname.replace(/^\[(.*)\]$/, '$1')
    const socket = connectTLS({ host, port: Number(port || 443), ALPNProtocols: ['h2', 'http/1.1'], ...(isIP(host) === 0 && { servername: host }) })
    this.#destroy.push(() => socket.destroy())
    return new Promise((resolve, reject) => {
      socket.once('secureConnect', () => {
        this.isConnected = true
        resolve(socket)
      }).on('error', reject)
    })
  }

  #send1 (socket: TLSSocket | null): Promise<Answer> {
    const { url, method = 'GET', headers } = this.#question
    // Without an agent, Node.js would announce that the connection is closed, which no browser does.
    const options = { method, headers: { connection: 'keep-alive', ...headers }, maxHeaderSize: MAX_HEADER_BYTES }
    const request = socket === null ? requestHTTP(url, { ...options, agent: false }) : requestHTTPS(url, { ...options, createConnection: () => socket })
    this.#destroy.push(() => request.destroy())
    return new Promise((resolve, reject) => {
      request.on('socket', socket => socket.once('connect', () => { this.isConnected = true }))
      request.on('error', reject)
      request.on('response', response => {
        response.on('error', () => {})
        resolve(this.#answer(response.statusCode!, response.httpVersion, response.headers, response))
      })
      request.end()
    })
  }

  #send2 (socket: TLSSocket): Promise<Answer> {
    const { url, method = 'GET', headers: { host, connection, ...headers } } = this.#question
    const session = connectHTTP2(url.origin, { createConnection: () => socket })
    this.#destroy.push(() => session.destroy())
    return new Promise((resolve, reject) => {
      session.on('error', reject)
      const stream = session.request({ ':method': method, ':path': url.pathname + url.search, ...headers })
      stream.on('error', reject)
      stream.on('response', headers => resolve(this.#answer(headers[':status']!, '2', headers as HeaderValues, stream)))
      stream.end()
    })
  }

  #answer (status: number, version: string, headers: HeaderValues, body: IncomingMessage | ClientHttp2Stream): Answer {
    return new Answer(this.#question.url, status, version, systemClock.monotonic() - this.#startedAt, headers, body, this.close)
  }
}
