import { createHash } from 'node:crypto'
import { isErrorReply, type Connection } from './client.js'

/** A Lua script. It is sent by its digest; the source is sent only to a Redis that does not have it, such as after a restart. */
export class Script {
  readonly #source: string
  readonly #digest: string

  constructor (source: string) {
    this.#source = source
    this.#digest = createHash('sha1').update(source).digest('hex')
  }

  /** Runs the script and resolves with its reply. Rejects like `Connection.send`. */
  async run (connection: Connection, keys: readonly string[], args: readonly string[], timeoutMs: number): Promise<unknown> {
    const rest = [String(keys.length), ...keys, ...args]
    try {
      return await connection.send(['EVALSHA', this.#digest, ...rest], timeoutMs)
    } catch (error) {
      if (!isErrorReply(error) || !error.message.startsWith('NOSCRIPT ')) throw error
      return await connection.send(['EVAL', this.#source, ...rest], timeoutMs)
    }
  }
}
