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
  readonly #checks = new Set<() => void>()

  constructor (url: string, request?: RawRequest) {
    const { hostname, port, protocol } = new URL(url)
    this.socket = protocol === 'https:'
      ? connectTLS({ host: hostname, port: Number(port), rejectUnauthorized: false, ALPNProtocols: ['http/1.1'] })
      : connect(Number(port), hostname)
    this.socket.on('data', bytes => {
      this.#chunks.push(bytes)
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
    return readAnswers(this.bytes)
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

export interface Answer {
  status: number
  headers: Record<string, string>
  /** Each chunk of a chunked body. */
  chunks: string[]
  body: string
  /** Its end has been seen: the last chunk, or all of its content-length. Never set for a body that the close delimits. */
  complete: boolean
}

/** Reads HTTP/1.1 answers as RFC 9112 has it, and throws at the first byte out of place. */
export function readAnswers (bytes: Buffer): Answer[] {
  const answers: Answer[] = []
  let at = 0
  while (at < bytes.length) {
    const headEnd = bytes.indexOf('\r\n\r\n', at)
    if (headEnd < 0) break
    const [first, ...lines] = bytes.toString('latin1', at, headEnd).split('\r\n')
    const status = /^HTTP\/1\.[01] (\d{3}) /.exec(first!)
    if (status === null) throw new Error(`No status line: ${JSON.stringify(first!.slice(0, 80))}`)
    const answer: Answer = { status: Number(status[1]), headers: {}, chunks: [], body: '', complete: false }
    for (const line of lines) answer.headers[line.slice(0, line.indexOf(':')).toLowerCase()] = line.slice(line.indexOf(':') + 1).trim()
    answers.push(answer)
    at = headEnd + 4
    if (answer.headers['transfer-encoding'] === 'chunked') at = readChunks(bytes, at, answer)
    else at = readLength(bytes, at, answer)
  }
  return answers
}

function readChunks (bytes: Buffer, from: number, answer: Answer): number {
  let at = from
  const parts: Buffer[] = []
  while (!answer.complete) {
    const lineEnd = bytes.indexOf('\r\n', at)
    if (lineEnd < 0) break
    const line = bytes.toString('latin1', at, lineEnd)
    if (!/^[0-9a-f]{1,8}$/i.test(line)) throw new Error(`No chunk size: ${JSON.stringify(line.slice(0, 80))}`)
    const size = parseInt(line, 16)
    const end = lineEnd + 2 + size
    if (bytes.length < end + 2) break
    if (bytes.toString('latin1', end, end + 2) !== '\r\n') throw new Error('A chunk does not end where it says')
    if (size === 0) answer.complete = true
    else parts.push(bytes.subarray(lineEnd + 2, end))
    at = end + 2
  }
  answer.chunks = parts.map(part => part.toString())
  answer.body = Buffer.concat(parts).toString()
  return answer.complete ? at : bytes.length
}

function readLength (bytes: Buffer, from: number, answer: Answer): number {
  const length = answer.headers['content-length']
  if (length === undefined) {
    answer.body = bytes.toString('utf8', from)
    return bytes.length
  }
  answer.body = bytes.toString('utf8', from, from + Number(length))
  answer.complete = bytes.length >= from + Number(length)
  return from + Number(length)
}

/** The blocks of a complete or unfinished event stream. */
export function blocksOf (text: string): Block[] {
  return new StreamParser().push(text)
}

/** The data of its events, control events left out. */
export function dataOf (text: string): string[] {
  return blocksOf(text).filter(({ data, event }) => data !== null && !event.startsWith('sse:')).map(({ data }) => data!)
}
