/** Redis's clock, which may differ from the clocks of nodes. */
export class ServerClock {
  #aheadMs = 0

  /** @param now Redis's clock in a reply that has just come, in milliseconds since the epoch. */
  observe (now: number): void {
    this.#aheadMs = now - Date.now()
  }

  get now (): number {
    return Date.now() + this.#aheadMs
  }

  /** A time of Redis's clock by this node's clock. */
  localTime (time: number): number {
    return time - this.#aheadMs
  }
}
