import { inNoContext } from '../../util/async-context.js'
import type { Connection } from './client.js'
import type { OnDemandConnection } from './on-demand.js'
import { APPEND_RUNS } from './scripts/run.js'

/** Slowest link on which events are appended before their connection times out: 64 KB/s. */
const APPEND_BYTES_PER_MS = 64
/** Limits of one command. A single larger append is sent by itself. */
const MAX_APPENDS = 128
const MAX_CHARACTERS = 256 * 1024

/** An append to one run. */
export interface RunAppend {
  readonly key: string
  readonly generation: number
  readonly token: string
  readonly after: number
  readonly leaseMs: number
  readonly texts: readonly string[]
}

interface Waiting {
  readonly append: RunAppend
  readonly characters: number
  resolve (state: unknown): void
  reject (error: unknown): void
}

/** Sends the appends of one turn of the event loop together. A command for each would cost more than the append itself. */
export class RunAppends {
  readonly #link: OnDemandConnection
  readonly #replyTimeoutMs: number
  #waiting: Waiting[] = []

  constructor (link: OnDemandConnection, replyTimeoutMs: number) {
    this.#link = link
    this.#replyTimeoutMs = replyTimeoutMs
  }

  /** Resolves with the state of the run; null if nothing was appended. */
  add (append: RunAppend): Promise<unknown> {
    if (this.#waiting.length === 0) inNoContext(() => { setImmediate(() => this.#send()) })
    const characters = append.texts.reduce((sum, text) => sum + text.length, 0)
    return new Promise((resolve, reject) => { this.#waiting.push({ append, characters, resolve, reject }) })
  }

  #send (): void {
    const waiting = this.#waiting
    this.#waiting = []
    for (let end = 0; end < waiting.length;) {
      const start = end
      for (let characters = 0; end < waiting.length && end - start < MAX_APPENDS; end++) {
        characters += waiting[end]!.characters
        if (characters > MAX_CHARACTERS && end > start) break
      }
      this.#sendTogether(waiting.slice(start, end))
    }
  }

  async #sendTogether (batch: readonly Waiting[]): Promise<void> {
    try {
      const states = await this.#link.use(connection => this.#run(connection, batch)) as unknown[]
      for (const [i, { resolve, reject }] of batch.entries()) {
        const state = states[i]
        if (state instanceof Error) reject(state)
        else resolve(state)
      }
    } catch (error) {
      for (const { reject } of batch) reject(error)
    }
  }

  #run (connection: Connection, batch: readonly Waiting[]): Promise<unknown> {
    const keys: string[] = []
    const args: string[] = []
    let characters = 0
    for (const { append: { key, generation, token, after, leaseMs, texts }, characters: size } of batch) {
      keys.push(key)
      args.push(String(generation), token, String(after), String(leaseMs), String(texts.length), ...texts)
      characters += size
    }
    return APPEND_RUNS.run(connection, keys, args, this.#replyTimeoutMs + Math.ceil(characters / APPEND_BYTES_PER_MS))
  }
}
