import { closeSync, existsSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/**
 * How many events the load has received, in a file in memory that the server reads: flow control that is the same for
 * every implementation, costs one `pread`, and sends nothing over the sockets that are measured.
 */
export class Credit {
  #fd
  #bytes = Buffer.alloc(8)

  constructor (path, flags) {
    this.#fd = openSync(path, flags)
  }

  get count () {
    readSync(this.#fd, this.#bytes, 0, 8, 0)
    return this.#bytes.readDoubleLE(0)
  }

  set count (value) {
    this.#bytes.writeDoubleLE(value, 0)
    writeSync(this.#fd, this.#bytes, 0, 8, 0)
  }

  close () {
    closeSync(this.#fd)
  }
}

/** A new file for one pair of server and load. */
export function createCreditFile () {
  const directory = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'sse-bench-'))
  const path = join(directory, 'credit')
  writeFileSync(path, Buffer.alloc(8))
  return { path, remove: () => rmSync(directory, { recursive: true, force: true }) }
}
