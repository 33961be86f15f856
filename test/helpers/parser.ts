// An event stream parser written from WHATWG HTML, "Server-sent events", sections 9.2.5 and 9.2.6, for comparison with
// what lib/ writes. It takes bytes, cut anywhere, and shares no code with lib/.

export interface ParsedEvent {
  type: string
  data: string
  /** Last-Event-ID at the time of the event; it stays until another block changes it. */
  lastEventId: string
}

const LF = '\n'
const CR = '\r'

export class EventStreamParser {
  readonly events: ParsedEvent[] = []
  readonly comments: string[] = []
  readonly retries: number[] = []
  /** What a reconnection would send; also moved by blocks without data. */
  lastEventId = ''
  // Decodes characters cut by the end of a chunk, and strips one leading byte order mark, as the specification asks.
  readonly #decoder = new TextDecoder('utf-8')
  #line = ''
  #afterCR = false
  #type = ''
  #data = ''
  #id = ''

  push (bytes: Uint8Array): this {
    for (const character of this.#decoder.decode(bytes, { stream: true })) {
      const secondHalf = this.#afterCR && character === LF
      this.#afterCR = character === CR
      if (secondHalf) continue
      if (character === LF || character === CR) {
        const line = this.#line
        this.#line = ''
        this.#take(line)
      } else {
        this.#line += character
      }
    }
    return this
  }

  /** Whether the stream stands between two blocks: nothing of an unfinished one would be lost by a cut. */
  get atRest (): boolean {
    return this.#line === '' && this.#type === '' && this.#data === '' && this.#id === this.lastEventId
  }

  #take (line: string): void {
    if (line === '') return this.#dispatch()
    const colon = line.indexOf(':')
    if (colon === 0) {
      this.comments.push(line.slice(1))
      return
    }
    const name = colon === -1 ? line : line.slice(0, colon)
    let value = colon === -1 ? '' : line.slice(colon + 1)
    if (value.startsWith(' ')) value = value.slice(1)
    if (name === 'event') this.#type = value
    else if (name === 'data') this.#data += value + LF
    else if (name === 'id' && !value.includes('\0')) this.#id = value
    else if (name === 'retry' && /^[0-9]+$/.test(value)) this.retries.push(Number(value))
  }

  #dispatch (): void {
    this.lastEventId = this.#id
    if (this.#data !== '') this.events.push({ type: this.#type === '' ? 'message' : this.#type, data: this.#data.slice(0, -1), lastEventId: this.lastEventId })
    this.#data = ''
    this.#type = ''
  }
}

/** Cuts bytes at the given places, in any order; places outside are brought inside. */
export function cut (bytes: Uint8Array, places: readonly number[]): Uint8Array[] {
  const at = [...new Set(places.map(place => place % (bytes.length + 1)))].sort((a, b) => a - b)
  const edges = [0, ...at, bytes.length]
  return edges.slice(1).map((end, i) => bytes.subarray(edges[i]!, end))
}

/** The body of an HTTP/1.1 message in chunked coding (RFC 9112, 7.1), and whether its last chunk has come. */
export function decodeChunked (bytes: Buffer): { body: Buffer, ended: boolean } {
  const parts: Buffer[] = []
  let at = 0
  while (at < bytes.length) {
    const end = bytes.indexOf('\r\n', at)
    const size = bytes.toString('latin1', at, end)
    if (end === -1 || !/^[0-9a-fA-F]+$/.test(size)) throw new Error(`No chunk size at byte ${at}`)
    const from = end + 2
    const to = from + parseInt(size, 16)
    if (bytes.toString('latin1', to, to + 2) !== '\r\n') throw new Error(`A chunk does not end at byte ${to}`)
    if (to === from) return { body: Buffer.concat(parts), ended: true }
    parts.push(bytes.subarray(from, to))
    at = to + 2
  }
  return { body: Buffer.concat(parts), ended: false }
}
