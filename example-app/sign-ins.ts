import { randomBytes } from 'node:crypto'
import { readFileSync, renameSync, writeFileSync } from 'node:fs'

const LIFETIME_MS = 8 * 3_600_000
const REMEMBERED = 1_000

/** A sign-in of a user. */
export interface SignIn {
  readonly userId: string
  readonly expiresAt: number
}

/**
 * Keeps the active sign-ins, by the secret in their cookies. With a file, they remain after a restart. With more than a thousand, the
 * oldest end.
 */
export class SignIns {
  readonly #file: string | null
  readonly #all: Map<string, SignIn>

  constructor (file: string | null) {
    this.#file = file
    this.#all = new Map(file === null ? [] : read(file))
  }

  /** Adds a sign-in, and returns its secret. */
  open (userId: string): { id: string, expiresAt: number } {
    const now = Date.now()
    for (const [id, { expiresAt }] of this.#all) if (expiresAt <= now) this.#all.delete(id)
    if (this.#all.size >= REMEMBERED) this.#all.delete(this.#all.keys().next().value!)
    const id = randomBytes(18).toString('base64url')
    const expiresAt = now + LIFETIME_MS
    this.#all.set(id, { userId, expiresAt })
    this.#write()
    return { id, expiresAt }
  }

  /** Returns the sign-in with this secret; null if there is none or it has expired. */
  find (id: string): SignIn | null {
    const signIn = this.#all.get(id)
    return signIn === undefined || signIn.expiresAt <= Date.now() ? null : signIn
  }

  /** Removes the sign-in with this secret. */
  end (id: string): void {
    if (this.#all.delete(id)) this.#write()
  }

  /**
   * Writes the file synchronously, so that an ended sign-in does not return after a crash. The rename makes the change atomic. Only the
   * owner can read the file, because it contains the secrets of the cookies.
   */
  #write (): void {
    if (this.#file === null) return
    const next = `${this.#file}.next`
    writeFileSync(next, JSON.stringify([...this.#all]), { mode: 0o600 })
    renameSync(next, this.#file)
  }
}

function read (file: string): [string, SignIn][] {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as [string, SignIn][]
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  }
}
