import { request as requestHTTP } from 'node:http'
import { connect as connectHTTP2 } from 'node:http2'
import { request as requestHTTPS } from 'node:https'
import { isIP } from 'node:net'
import { connect as connectTLS, type TLSSocket } from 'node:tls'
import { systemClock } from '../util/clock.js'
import { Answer, type Head, type HeaderValues } from './answer.js'
import { duration } from './finding.js'

/** As in browsers. The limit of Node.js is 16 KB. */
const MAX_HEADER_BYTES = 256 * 1024

export interface Question {
  readonly url: URL
  readonly method: string
  /** By lower-case name. */
  readonly headers: Readonly<Record<string, string>>
  /** Longest time to the headers of the answer, in milliseconds. */
  readonly timeoutMs: number
  /** Disconnects, also while the body is read. */
  readonly signal: AbortSignal
}

/** Why there is no answer: no connection, or a connection on which nothing arrives. */
export interface Failure {
  readonly failure: 'unreachable' | 'silent'
  /** Code of the error of Node.js, such as `ECONNREFUSED`. */
  readonly code: string
  readonly message: string
}

const CLOSED: Failure = { failure: 'unreachable', code: 'ECONNRESET', message: 'the connection is closed' }

/**
 * Sends a request, and waits for the headers of the answer. Negotiates HTTP/2 over TLS as browsers do, and follows no redirect.
 * Rejects with the reason of the signal.
 */
export async function ask (question: Question): Promise<Answer | Failure> {
  const { timeoutMs, signal } = question
  signal.throwIfAborted()
  const attempt = new Attempt(question)
  let timer
  const limit = new Promise<Failure>((resolve, reject) => {
    timer = systemClock.after(timeoutMs, () => resolve(attempt.isConnected
      ? { failure: 'silent', code: 'ETIMEDOUT', message: `no answer within ${duration(timeoutMs)}` }
      : { failure: 'unreachable', code: 'ETIMEDOUT', message: `no connection within ${duration(timeoutMs)}` }))
    signal.addEventListener('abort', () => {
      attempt.close()
      reject(signal.reason)
    }, { once: true })
  })
  // OpenSSL has a short reason. The message of an AggregateError is empty.
  const answer = attempt.send().catch(({ code = '', reason, message }: NodeJS.ErrnoException & { reason?: string }): Failure => ({ failure: 'unreachable', code, message: reason ?? (message || code) }))
  try {
    const result = await Promise.race([answer, limit])
    if ('failure' in result) attempt.close()
    return result
  } finally {
    systemClock.cancel(timer)
  }
}

/** One request, on a connection of its own. */
class Attempt {
  readonly #question: Question
  readonly #startedAt = systemClock.monotonic()
  #connectedAt: number | null = null
  readonly #destroy: (() => void)[] = []

  constructor (question: Question) {
    this.#question = question
  }

  get isConnected (): boolean {
    return this.#connectedAt !== null
  }

  async send (): Promise<Answer | Failure> {
    if (this.#question.url.protocol === 'http:') return await this.#send1(null)
    const socket = await this.#connectTLS()
    return socket.alpnProtocol === 'h2' ? await this.#send2(socket) : await this.#send1(socket)
  }

  readonly close = (): void => {
    for (const destroy of this.#destroy) destroy()
  }

  readonly #connected = (): void => { this.#connectedAt = systemClock.monotonic() }

  #connectTLS (): Promise<TLSSocket> {
    const { hostname, port } = this.#question.url
    const host = hostname.replace(/^\[(.*)\]$/, '$1')
    const socket = connectTLS({ host, port: Number(port || 443), ALPNProtocols: ['h2', 'http/1.1'], ...(isIP(host) === 0 && { servername: host }) })
    this.#destroy.push(() => socket.destroy())
    return new Promise((resolve, reject) => {
      socket.once('secureConnect', this.#connected).once('secureConnect', () => resolve(socket)).on('error', reject)
    })
  }

  #send1 (socket: TLSSocket | null): Promise<Answer> {
    const { url, method, headers } = this.#question
    // Without an agent, Node.js would announce that the connection is closed, which no browser does.
    const options = { method, headers: { connection: 'keep-alive', ...headers }, maxHeaderSize: MAX_HEADER_BYTES }
    const request = socket === null ? requestHTTP(url, { ...options, agent: false }) : requestHTTPS(url, { ...options, createConnection: () => socket })
    if (socket === null) request.on('socket', socket => socket.once('connect', this.#connected))
    this.#destroy.push(() => request.destroy())
    return new Promise((resolve, reject) => {
      let answer: Answer | null = null
      request.on('error', (error: NodeJS.ErrnoException) => {
        if (answer === null) reject(error)
        else if (error.code?.startsWith('HPE_')) answer.fail(error)
      }).on('response', response => {
        response.on('error', () => {})
        answer = new Answer(this.#head(response.statusCode!, response.httpVersion, response.headers), response, this.close)
        resolve(answer)
      }).end()
    })
  }

  #send2 (socket: TLSSocket): Promise<Answer | Failure> {
    const { url, method, headers: { host, connection, ...headers } } = this.#question
    const session = connectHTTP2(url.origin, { createConnection: () => socket })
    this.#destroy.push(() => session.destroy())
    return new Promise((resolve, reject) => {
      session.on('error', reject)
      const stream = session.request({ ':method': method, ':path': url.pathname + url.search, ...headers })
      stream.on('error', reject).on('response', headers => {
        resolve(new Answer(this.#head(headers[':status']!, '2', headers as HeaderValues), stream, this.close))
      }).on('close', () => resolve(CLOSED)).end()
    })
  }

  #head (status: number, version: string, headers: HeaderValues): Head {
    const now = systemClock.monotonic()
    const connectedAt = this.#connectedAt ?? now
    return { url: this.#question.url, status, version: version as Head['version'], connectMs: connectedAt - this.#startedAt, headMs: now - connectedAt, headers }
  }
}
