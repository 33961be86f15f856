import { open, stat, type FileHandle } from 'node:fs/promises'
import { basename } from 'node:path'
import { StringDecoder } from 'node:string_decoder'
import type { LogLines } from './events.js'
import type { LogSource } from './log-source.js'

const FIRST_BYTES = 16 << 10
const CHUNK_BYTES = 64 << 10
const LINE_CHARACTERS = 2_000
const LINES_PER_EVENT = 200
const KEPT_LINES = 200
// Terminal colours and control characters.
// eslint-disable-next-line no-control-regex
const UNPRINTABLE = /\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]/g

/**
 * Reads the end of a growing file by polling its size. It handles a missing, truncated or rotated file. If the writer is faster than the
 * reader, bytes are skipped and counted.
 */
export class Tail implements LogSource {
  readonly recent: string[] = []
  #handle: FileHandle | null = null
  #inode = 0
  #position = 0
  #decoder = new StringDecoder('utf8')
  #rest = ''
  /** Whether the read started in the middle of a line. */
  #midLine = false
  #seq = 0
  #first = true

  constructor (readonly path: string) {}

  get name (): string {
    return basename(this.path)
  }

  get seq (): number {
    return this.#seq
  }

  async read (): Promise<LogLines[]> {
    const found = await stat(this.path).catch(() => null)
    const events: LogLines[] = []
    if (this.#handle !== null && found?.ino !== this.#inode) {
      await this.#readRest(events)
      await this.close()
    }
    if (found === null || !found.isFile()) return events
    if (this.#handle === null) await this.#open()
    await this.#readRest(events)
    return events
  }

  async close (): Promise<void> {
    const handle = this.#handle
    this.#handle = null
    await handle?.close()
  }

  async #open (): Promise<void> {
    this.#handle = await open(this.path, 'r')
    const { ino, size } = await this.#handle.stat()
    this.#inode = ino
    // Only the end is read of a file that already exists. A file that replaces it is read from its start.
    this.#position = this.#first ? Math.max(0, size - FIRST_BYTES) : 0
    this.#restart(this.#position > 0)
    this.#first = false
  }

  #restart (midLine: boolean): void {
    this.#midLine = midLine
    this.#decoder = new StringDecoder('utf8')
    this.#rest = ''
  }

  async #readRest (events: LogLines[]): Promise<void> {
    const { size } = await this.#handle!.stat()
    if (size < this.#position) {
      this.#position = 0
      this.#restart(false)
    }
    let skippedBytes = 0
    if (size - this.#position > CHUNK_BYTES) {
      skippedBytes = size - this.#position - CHUNK_BYTES
      this.#position = size - CHUNK_BYTES
      this.#restart(true)
    }
    const buffer = Buffer.allocUnsafe(size - this.#position)
    const { bytesRead } = await this.#handle!.read(buffer, 0, buffer.length, this.#position)
    this.#position += bytesRead
    const pieces = (this.#rest + this.#decoder.write(buffer.subarray(0, bytesRead))).split('\n')
    this.#rest = pieces.pop()!.slice(0, LINE_CHARACTERS)
    if (this.#midLine && pieces.length > 0) {
      pieces.shift()
      this.#midLine = false
    }
    const lines = pieces.map(line => line.replace(UNPRINTABLE, '').slice(0, LINE_CHARACTERS))
    this.recent.push(...lines)
    this.recent.splice(0, Math.max(0, this.recent.length - KEPT_LINES))
    for (let i = 0; i < lines.length || skippedBytes > 0; i += LINES_PER_EVENT) {
      events.push({ seq: ++this.#seq, at: Date.now(), lines: lines.slice(i, i + LINES_PER_EVENT), skippedBytes })
      skippedBytes = 0
    }
  }
}
