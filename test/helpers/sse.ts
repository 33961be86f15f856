// The streams of the test kit are what most tests read. Here is what they leave out on purpose: blocks as they stand on the wire, a client
// that leaves in the middle of what one read brought, pauses that fill the buffers of the kernel, and requests that are given up before
// they are answered.

import { connect, type Socket } from 'node:net'
import { until } from './wait.js'

/** One block as the stream carried it: dispatched when it had data. */
export interface Block {
  /** `message` when there was no `event:` line. */
  event: string
  data: string | null
  /** The `id:` line of this block, null when there was none. */
  id: string | null
  retry: number | null
  comment: string | null
  text: string
}

/** Reads an event stream by the letter of WHATWG HTML, "Interpreting an event stream"; written apart from lib/. */
export class StreamParser {
  readonly blocks: Block[] = []
  lastEventId = ''
  #rest = ''
  #lines: string[] = []

  push (text: string): Block[] {
    const from = this.blocks.length
    this.#rest += text
    let end: RegExpExecArray | null
    // A CR at the very end may be half of a CRLF.
    while ((end = /\r\n|\n|\r(?!$)/.exec(this.#rest)) !== null) {
      const line = this.#rest.slice(0, end.index)
      this.#rest = this.#rest.slice(end.index + end[0].length)
      if (line === '') this.#dispatch()
      else this.#lines.push(line)
    }
    return this.blocks.slice(from)
  }

  #dispatch (): void {
    const block: Block = { event: '', data: null, id: null, retry: null, comment: null, text: this.#lines.join('\n') }
    for (const line of this.#lines) {
      const colon = line.indexOf(':')
      const field = colon < 0 ? line : line.slice(0, colon)
      const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '')
      if (colon === 0) block.comment = value
      else if (field === 'event') block.event = value
      else if (field === 'data') block.data = block.data === null ? value : block.data + '\n' + value
      else if (field === 'id' && !value.includes('\0')) block.id = value
      else if (field === 'retry' && /^\d+$/.test(value)) block.retry = Number(value)
    }
    this.#lines = []
    if (block.event === '') block.event = 'message'
    if (block.id !== null) this.lastEventId = block.id
    this.blocks.push(block)
  }
}

export interface ClientOptions {
  method?: string
  headers?: Record<string, string>
  /** Sent after the head, with its length. */
  body?: string
}

/** What one answer carries, event stream or not, read from bytes cut anywhere. */
export class AnswerReader {
  readonly parser = new StreamParser()
  /** Bytes received, head included. */
  received = 0
  status = 0
  headers: Record<string, string> = {}
  /** What came instead of a stream. */
  body = ''
  /** Whether the last chunk has come: the server ended the response properly. */
  ended = false
  /** Called for each block as it comes; returning false drops the connection on the spot, and what came with it. */
  onBlock: ((block: Block) => boolean | undefined) | null = null
  #head = false
  #bodyBytes = 0
  #bytes: Buffer = Buffer.alloc(0)
  #decoder = new TextDecoder()

  get isStream (): boolean {
    return this.status === 200 && this.headers['content-type'] === 'text/event-stream'
  }

  get blocks (): Block[] {
    return this.parser.blocks
  }

  /** The blocks that dispatched an event. */
  get events (): Block[] {
    return this.blocks.filter(block => block.data !== null)
  }

  named (event: string): Block[] {
    return this.events.filter(block => block.event === event)
  }

  /** The data of all events of a name, parsed. */
  json (event = 'message'): any[] {
    return this.named(event).map(({ data }) => JSON.parse(data!))
  }

  get lastEventId (): string {
    return this.parser.lastEventId
  }

  /** The JSON body of an answer that is no stream. */
  get answer (): any {
    return JSON.parse(this.body)
  }

  /** Whether the client has left: it reads nothing any more. */
  get left (): boolean {
    return false
  }

  /** Leaves. */
  close (): void {}

  push (bytes: Buffer): void {
    if (this.left) return
    this.received += bytes.length
    this.#bytes = this.#bytes.length === 0 ? bytes : Buffer.concat([this.#bytes, bytes])
    if (!this.#head) {
      const end = this.#bytes.indexOf('\r\n\r\n')
      if (end < 0) return
      const [first, ...lines] = this.#bytes.toString('latin1', 0, end).split('\r\n')
      this.#bytes = this.#bytes.subarray(end + 4)
      this.status = Number(first!.split(' ')[1])
      for (const line of lines) this.headers[line.slice(0, line.indexOf(':')).toLowerCase()] = line.slice(line.indexOf(':') + 1).trim()
      this.#head = true
      if (this.status === 204) this.ended = true
    }
    if (this.headers['transfer-encoding'] === 'chunked') {
      this.#readChunks()
    } else {
      this.#bodyBytes += this.#bytes.length
      this.#take(this.#bytes)
      this.#bytes = Buffer.alloc(0)
      if (this.#bodyBytes === Number(this.headers['content-length'])) this.ended = true
    }
  }

  #readChunks (): void {
    let at = 0
    while (!this.left) {
      const lineEnd = this.#bytes.indexOf('\r\n', at)
      if (lineEnd < 0) break
      const size = parseInt(this.#bytes.toString('latin1', at, lineEnd), 16)
      if (!Number.isInteger(size)) throw new Error('The stream is not chunked as HTTP/1.1 asks')
      const end = lineEnd + 2 + size
      if (this.#bytes.length < end + 2) break
      if (size === 0) this.ended = true
      else this.#take(this.#bytes.subarray(lineEnd + 2, end))
      at = end + 2
    }
    this.#bytes = this.#bytes.subarray(at)
  }

  #take (bytes: Buffer): void {
    const text = this.#decoder.decode(bytes, { stream: true })
    if (!this.isStream) {
      this.body += text
      return
    }
    if (this.onBlock === null) {
      this.parser.push(text)
      return
    }
    // Block by block, so that a client can leave in the middle of what one read brought.
    for (const piece of text.split(/(?<=\n\n)/)) {
      for (const block of this.parser.push(piece)) {
        if (this.onBlock(block) === false) {
          this.close()
          return
        }
      }
    }
  }
}

/** A client on a bare socket, HTTP/1.1: it sees each byte, and may stop reading or leave as it likes. */
export class SSEClient extends AnswerReader {
  readonly socket: Socket
  closed = false

  constructor (url: string, { method = 'GET', headers = {}, body }: ClientOptions = {}) {
    super()
    const { hostname, port, host, pathname, search } = new URL(url)
    this.socket = connect(Number(port), hostname)
    const lines = Object.entries({ host, ...(body !== undefined && { 'content-length': String(Buffer.byteLength(body)) }), ...headers })
    // latin1, so that a test can send any byte in a header.
    this.socket.write(Buffer.from(`${method} ${pathname}${search} HTTP/1.1\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`, 'latin1'))
    if (body !== undefined) this.socket.write(body)
    this.socket.on('data', bytes => { this.push(bytes as Buffer) })
    this.socket.on('error', () => {})
    this.socket.on('close', () => { this.closed = true })
  }

  /** Resolves once the head and, for a stream, its first block are here. */
  static open (url: string, options?: ClientOptions): Promise<SSEClient> {
    return new SSEClient(url, options).ready()
  }

  /** See `open`. */
  async ready (ms = 30_000): Promise<this> {
    await until(() => this.closed || this.ended || (this.isStream && this.blocks.length > 0), ms, 'an answer')
    return this
  }

  override get left (): boolean {
    return this.socket.destroyed
  }

  async waitForEnd (ms = 30_000): Promise<void> {
    await until(() => this.closed || this.ended, ms, 'the end of the stream')
  }

  /** Stops reading: the kernel's buffers fill, then the server's. */
  pause (): void {
    this.socket.pause()
  }

  resume (): void {
    this.socket.resume()
  }

  override close (): void {
    this.socket.destroy()
  }

  /** Leaves with RST. */
  reset (): void {
    this.socket.resetAndDestroy()
  }
}
