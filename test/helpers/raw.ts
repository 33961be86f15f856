import { connect, type Socket } from 'node:net'
import { connect as connectTLS } from 'node:tls'
import { StreamParser, type Block } from './sse.js'

export interface RawRequest {
  method?: string
  path?: string
  version?: '1.0' | '1.1'
  headers?: Record<string, string>
  body?: string
}

/** The bytes of a request. */
export function requestText ({ method = 'GET', path = '/', version = '1.1', headers = {}, body }: RawRequest = {}): string {
  const all = { host: '127.0.0.1', ...(body !== undefined && { 'content-length': String(Buffer.byteLength(body)) }), ...headers }
  return `${method} ${path} HTTP/${version}\r\n${Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n${body ?? ''}`
}

/** A socket that keeps each byte it was sent, for tests about framing, keep-alive and pipelining. */
export class RawSocket {
  readonly socket: Socket
  /** The server has sent FIN. */
  finished = false
  closed = false
  length = 0
  #chunks: Buffer[] = []
  /** What `answers` has not looked at yet. */
  #unread: Buffer[] = []
  readonly #reader = new AnswersReader()
  readonly #checks = new Set<() => void>()

  constructor (url: string, request?: RawRequest) {
    const { hostname, port, protocol } = new URL(url)
    this.socket = protocol === 'https:'
      ? connectTLS({ host: hostname, port: Number(port), rejectUnauthorized: false, ALPNProtocols: ['http/1.1'] })
      : connect(Number(port), hostname)
    this.socket.on('data', bytes => {
      this.#chunks.push(bytes)
      this.#unread.push(bytes)
      this.length += bytes.length
      this.#check()
    })
    this.socket.on('end', () => { this.finished = true })
    this.socket.on('close', () => {
      this.closed = true
      this.#check()
    })
    this.socket.on('error', () => {})
    if (request !== undefined) this.send(request)
  }

  send (request: RawRequest): void {
    this.socket.write(requestText(request))
  }

  get bytes (): Buffer {
    if (this.#chunks.length > 1) this.#chunks = [Buffer.concat(this.#chunks)]
    return this.#chunks[0] ?? Buffer.alloc(0)
  }

  get text (): string {
    return this.bytes.toString('utf8')
  }

  /** The answers on this socket so far, the last one perhaps unfinished. */
  get answers (): Answer[] {
    for (const bytes of this.#unread.splice(0)) this.#reader.push(bytes)
    return this.#reader.answers
  }

  /** Waits for what the socket brings, without polling: there may be hundreds of these. */
  async until (condition: () => boolean, ms = 30_000, what = condition.toString()): Promise<void> {
    if (condition()) return
    let check: () => void = () => {}
    let timer: NodeJS.Timeout | undefined
    try {
      await new Promise<void>((resolve, reject) => {
        check = () => { if (condition()) resolve() }
        this.#checks.add(check)
        timer = setTimeout(() => reject(new Error(`Not within ${ms} ms: ${what}; has ${JSON.stringify(this.text.slice(-500))}`)), ms)
      })
    } finally {
      clearTimeout(timer)
      this.#checks.delete(check)
    }
  }

  #check (): void {
    for (const check of this.#checks) check()
  }

  async waitFor (text: string, ms?: number): Promise<void> {
    await this.until(() => this.bytes.includes(text) || this.closed, ms, JSON.stringify(text))
    if (!this.bytes.includes(text)) throw new Error(`Closed without ${JSON.stringify(text)}: ${JSON.stringify(this.text.slice(-500))}`)
  }

  async waitForClose (ms?: number): Promise<void> {
    await this.until(() => this.closed, ms, 'the socket to close')
  }

  /** Waits until `count` answers are complete. */
  async waitForAnswers (count: number, ms?: number): Promise<Answer[]> {
    await this.until(() => this.answers.filter(({ complete }) => complete).length >= count, ms, `${count} complete answers`)
    return this.answers
  }

  close (): void {
    this.socket.destroy()
  }
}

export class Answer {
  readonly status: number
  readonly headers: Record<string, string>
  /** Its end has been seen: the last chunk, or all of its content-length. Never set for a body that the close delimits. */
  complete = false
  readonly chunked: boolean
  readonly #parts: Buffer[] = []
  #bytes = 0

  constructor (status: number, headers: Record<string, string>) {
    this.status = status
    this.headers = headers
    this.chunked = headers['transfer-encoding'] === 'chunked'
  }

  /** Each chunk of a chunked body. */
  get chunks (): string[] {
    return this.chunked ? this.#parts.map(String) : []
  }

  get body (): string {
    return Buffer.concat(this.#parts).toString()
  }

  /** Bytes that are to come, as its head has it. */
  get missing (): number {
    return Number(this.headers['content-length'] ?? Infinity) - this.#bytes
  }

  take (bytes: Buffer): void {
    this.#parts.push(bytes)
    this.#bytes += bytes.length
  }
}

/** Reads HTTP/1.1 answers as RFC 9112 has it, each byte once, and throws at the first out of place. */
class AnswersReader {
  /** The last one perhaps unfinished. */
  readonly answers: Answer[] = []
  #rest: Buffer = Buffer.alloc(0)

  push (bytes: Buffer): void {
    this.#rest = this.#rest.length === 0 ? bytes : Buffer.concat([this.#rest, bytes])
    for (;;) {
      const answer = this.answers.at(-1)
      const taken = answer === undefined || answer.complete ? this.#readHead() : answer.chunked ? this.#readChunk(answer) : this.#readLength(answer)
      if (!taken) return
    }
  }

  #readHead (): boolean {
    const end = this.#rest.indexOf('\r\n\r\n')
    if (end < 0) return false
    const [first, ...lines] = this.#rest.toString('latin1', 0, end).split('\r\n')
    const status = /^HTTP\/1\.[01] (\d{3}) /.exec(first!)
    if (status === null) throw new Error(`No status line: ${JSON.stringify(first!.slice(0, 80))}`)
    this.answers.push(new Answer(Number(status[1]), Object.fromEntries(lines.map(line => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]))))
    this.#rest = this.#rest.subarray(end + 4)
    return true
  }

  #readChunk (answer: Answer): boolean {
    const rest = this.#rest
    const lineEnd = rest.indexOf('\r\n')
    if (lineEnd < 0) return false
    const line = rest.toString('latin1', 0, lineEnd)
    if (!/^[0-9a-f]{1,8}$/i.test(line)) throw new Error(`No chunk size: ${JSON.stringify(line.slice(0, 80))}`)
    const size = parseInt(line, 16)
    const end = lineEnd + 2 + size
    if (rest.length < end + 2) return false
    if (rest.toString('latin1', end, end + 2) !== '\r\n') throw new Error('A chunk does not end where it says')
    if (size === 0) answer.complete = true
    else answer.take(rest.subarray(lineEnd + 2, end))
    this.#rest = rest.subarray(end + 2)
    return true
  }

  #readLength (answer: Answer): boolean {
    const part = this.#rest.subarray(0, answer.missing)
    answer.take(part)
    answer.complete = answer.missing === 0
    this.#rest = this.#rest.subarray(part.length)
    return answer.complete
  }
}

/** The blocks of a complete or unfinished event stream. */
export function blocksOf (text: string): Block[] {
  return new StreamParser().push(text)
}

/** The data of its events, control events left out. */
export function dataOf (text: string): string[] {
  return blocksOf(text).filter(({ data, event }) => data !== null && !event.startsWith('sse:')).map(({ data }) => data!)
}
