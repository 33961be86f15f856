import { randomBytes } from 'node:crypto'
import { readFileSync, renameSync, writeFileSync } from 'node:fs'

const LIFETIME_MS = 8 * 3_600_000
const REMEMBERED = 1_000

export interface SignIn {
  readonly userId: string
  readonly expiresAt: number
}

/** Every sign-in that has not ended, by the secret in its cookie. With a file it outlives a restart. Beyond a thousand the oldest end. */
export class SignIns {
  readonly #file: string | null
  readonly #all: Map<string, SignIn>

  constructor (file: string | null) {
    this.#file = file
    this.#all = new Map(file === null ? [] : read(file))
  }

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

  find (id: string): SignIn | null {
    const signIn = this.#all.get(id)
    return signIn === undefined || signIn.expiresAt <= Date.now() ? null : signIn
  }

  end (id: string): void {
    if (this.#all.delete(id)) this.#write()
  }

  /** At once, so that no crash brings back what has ended; whole, by the rename. Only the owner may read it: it holds what cookies hold. */
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
