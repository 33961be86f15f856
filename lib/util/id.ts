import { randomFillSync } from 'node:crypto'

const BYTES = 16
const pool = Buffer.alloc(BYTES * 256)
let used = pool.length

/**
 * 128 random bits in 22 characters of `A-Z`, `a-z`, `0-9`, `-` and `_`. Not `randomUUID`, whose strings are made of twenty
 * pieces: 420 bytes of memory for each stream.
 */
export function createId (): string {
  if (used === pool.length) {
    randomFillSync(pool)
    used = 0
  }
  used += BYTES
  return pool.toString('base64url', used - BYTES, used)
}
