/** Redis's clock, which can differ from the clocks of nodes. */
export class ServerClock {
  #aheadMs = 0

  /**
   * Updates the difference between the clocks.
   * @param now Redis's clock in a reply that has just arrived, in milliseconds since the Unix epoch
   */
  observe (now: number): void {
    this.#aheadMs = now - Date.now()
  }

  /** Redis's clock in milliseconds since the Unix epoch. */
  get now (): number {
    return Date.now() + this.#aheadMs
  }

  /** Converts a time of Redis's clock to this node's clock. */
  localTime (time: number): number {
    return time - this.#aheadMs
  }
}
