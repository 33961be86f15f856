/** A rate limiter with a token bucket for each name: `burst` tokens at once, then `perSecond`. */
export class Rate {
  readonly #buckets = new Map<string, { tokens: number, at: number }>()

  constructor (readonly burst: number, readonly perSecond: number) {}

  /** Takes a token. Returns false if the bucket is empty. */
  take (name: string, now = Date.now()): boolean {
    const bucket = this.#buckets.get(name) ?? { tokens: this.burst, at: now }
    bucket.tokens = Math.min(this.burst, bucket.tokens + (now - bucket.at) / 1000 * this.perSecond)
    bucket.at = now
    this.#buckets.set(name, bucket)
    if (bucket.tokens < 1) return false
    bucket.tokens--
    return true
  }
}
