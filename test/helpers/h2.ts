import { connect, type ClientHttp2Session, type ClientHttp2Stream, type IncomingHttpHeaders } from 'node:http2'
import { StreamParser, type Block } from './sse.js'
import { until } from './wait.js'

/** One stream of an HTTP/2 session. */
export class H2Stream {
  readonly stream: ClientHttp2Stream
  readonly parser = new StreamParser()
  headers: IncomingHttpHeaders = {}
  status = 0
  text = ''
  ended = false
  closed = false

  constructor (session: ClientHttp2Session, path: string, headers: Record<string, string> = {}) {
    this.stream = session.request({ ':path': path, ...headers })
    this.stream.setEncoding('utf8')
    this.stream.on('response', headers => {
      this.headers = headers
      this.status = Number(headers[':status'])
    })
    this.stream.on('data', (text: string) => {
      this.text += text
      this.parser.push(text)
    })
    this.stream.on('end', () => { this.ended = true })
    this.stream.on('close', () => { this.closed = true })
    this.stream.on('error', () => {})
  }

  get blocks (): Block[] {
    return this.parser.blocks
  }

  named (event: string): Block[] {
    return this.blocks.filter(block => block.event === event && block.data !== null)
  }

  async waitFor (text: string, ms?: number): Promise<void> {
    await until(() => this.text.includes(text), ms, JSON.stringify(text))
  }

  async waitForClose (ms?: number): Promise<void> {
    await until(() => this.closed, ms, 'the stream to close')
  }
}

/** A session over clear text or TLS, with a certificate nobody vouches for. */
export function connectH2 (url: string): ClientHttp2Session {
  const session = connect(url, { rejectUnauthorized: false })
  session.on('error', () => {})
  return session
}
