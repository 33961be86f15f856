import { connect } from 'node:net'
import { microseconds } from './clock.mjs'
import { readPayload } from './payload.mjs'

const LF = 10
const CR = 13
// All sockets of this process are read into one buffer, one after the other: nothing is kept of it between reads.
const buffer = Buffer.allocUnsafe(64 * 1024)

const HEAD = 0
const SIZE = 1
const BODY = 2
const BODY_END = 3
const ENDED = 4

/** One connection: reads the head, the chunks, the blocks and the events, and checks that none is missing or there twice. */
class Reader {
  stalled = false
  #tally
  #topic
  #onOpened
  #state
  #head = ''
  #chunked = false
  #size = ''
  #left = 0
  /** Start of a block whose end has not come. */
  #tail = null
  #next = 0
  #times = []

  /**
   * @param state what comes first, the head or the body
   * @param topic the number its events must carry, -1 for none.
   */
  constructor (state, topic, tally, onOpened) {
    this.#state = state
    this.#tally = tally
    this.#topic = topic
    this.#onOpened = onOpened
  }

  reset () {
    this.#next = 0
  }

  opened (error) {
    this.#onOpened?.(error)
    this.#onOpened = null
  }

  closed () {
    this.opened('closed')
    this.#tally.fault('closed')
  }

  /** Reads the first bytes of `buffer`. */
  /** False stops reading. */
  read (length) {
    if (this.stalled) return false
    const tally = this.#tally
    const first = this.#next
    const clean = tally.remember && (this.#state === SIZE || !this.#chunked) && this.#size === '' && this.#tail === null && this.#state !== HEAD
    if (clean) {
      const memory = tally.recall(first, buffer, length)
      if (memory !== undefined) {
        this.#next = first + memory.times.length
        tally.receive(memory.times, microseconds())
        return true
      }
    }
    this.#times = []
    let position = 0
    while (position < length) position = this.#advance(position, length)
    const times = this.#times
    if (times.length === 0) return true
    tally.receive(times, microseconds())
    const sound = this.#next === first + times.length && this.#size === '' && this.#tail === null && (this.#state === SIZE || !this.#chunked)
    if (clean && sound) tally.memorise(first, buffer, length, times)
    return true
  }

  /** Reads on from `position` and returns how far it came. */
  #advance (position, length) {
    switch (this.#state) {
      case HEAD: return this.#readHead(position, length)
      case SIZE: return this.#readSize(position, length)
      case BODY: {
        const end = this.#chunked ? Math.min(length, position + this.#left) : length
        this.#readBlocks(buffer.subarray(position, end))
        this.#left -= end - position
        if (this.#chunked && this.#left === 0) this.#state = BODY_END
        return end
      }
      case BODY_END:
        if (buffer[position] === LF) this.#state = SIZE
        return position + 1
      default:
        return length
    }
  }

  #readHead (position, length) {
    this.#head += buffer.latin1Slice(position, length)
    const end = this.#head.indexOf('\r\n\r\n')
    if (end === -1) return length
    const rest = this.#head.length - end - 4
    const head = this.#head.slice(0, end)
    this.#head = ''
    this.#chunked = /\r\ntransfer-encoding: *chunked/i.test(head)
    this.#state = this.#chunked ? SIZE : BODY
    this.opened(head.startsWith('HTTP/1.1 200') ? null : head.slice(0, 40))
    return length - rest
  }

  #readSize (position, length) {
    while (position < length) {
      const byte = buffer[position++]
      if (byte !== LF) {
        if (byte !== CR) this.#size += String.fromCharCode(byte)
        continue
      }
      this.#left = parseInt(this.#size, 16)
      this.#size = ''
      this.#state = this.#left > 0 ? BODY : ENDED
      break
    }
    return position
  }

  #readBlocks (bytes) {
    if (this.#tail !== null) {
      bytes = Buffer.concat([this.#tail, bytes])
      this.#tail = null
    }
    let block = 0
    let line = 0
    let payload = null
    for (let end = bytes.indexOf(LF); end !== -1; end = bytes.indexOf(LF, line)) {
      const length = (end > line && bytes[end - 1] === CR ? end - 1 : end) - line
      if (length === 0) {
        if (payload !== null) this.#take(payload)
        payload = null
        block = end + 1
      } else {
        payload ??= readPayload(bytes, line)
      }
      line = end + 1
    }
    if (block < bytes.length) this.#tail = Buffer.from(bytes.subarray(block))
  }

  #take ({ time, number, topic }) {
    if (topic !== this.#topic) this.#tally.fault('misrouted')
    if (number === this.#next) {
      this.#next++
      this.#times.push(time)
    } else if (number < this.#next) {
      this.#tally.fault('repeated')
    } else {
      this.#tally.fault('lost', number - this.#next)
      this.#next = number + 1
      this.#times.push(time)
    }
  }
}

/** A connection of HTTP/1.1. */
export class SocketReader extends Reader {
  #socket

  constructor (...args) {
    super(HEAD, ...args)
  }

  open (port, path, headers) {
    const socket = this.#socket = connect({ host: '127.0.0.1', port, onread: { buffer, callback: length => this.read(length) } })
    socket.on('error', error => this.opened(error.message))
    socket.on('close', () => this.closed())
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`).join('')
    socket.write(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n${lines}\r\n`)
  }

  close () {
    this.#socket.removeAllListeners('close')
    this.#socket.destroy()
  }
}

/** A stream of HTTP/2. */
export class Http2Reader extends Reader {
  #stream

  constructor (...args) {
    super(BODY, ...args)
  }

  open (session, path, headers) {
    const stream = this.#stream = session.request({ ':path': path, accept: 'text/event-stream', ...headers })
    stream.on('response', headers => this.opened(headers[':status'] === 200 ? null : `status ${headers[':status']}`))
    stream.on('data', bytes => { this.read(bytes.copy(buffer)) })
    stream.on('error', error => this.opened(error.message))
    stream.on('close', () => this.closed())
  }

  close () {
    this.#stream.removeAllListeners('close')
    this.#stream.close()
  }
}
