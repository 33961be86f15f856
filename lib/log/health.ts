/** Whether this node's side of the event log works. */
export interface Health {
  /**
   * - `up`: what is published is logged and delivered.
   * - `degraded`: connected clients stay connected and `local` broadcasts reach them; nothing can be logged, or this node is late in reading the log.
   */
  readonly status: 'up' | 'degraded'
  /** Why it is degraded. */
  readonly reason?: string
  /** Since when it is so, in milliseconds since the epoch. */
  readonly since: number
}

export function up (since: number): Health {
  return { status: 'up', since }
}

/** Goes on being degraded since `before` was, if it was: the reason may change. */
export function degraded (reason: string, since: number, before?: Health): Health {
  return { status: 'degraded', reason, since: before?.status === 'degraded' ? before.since : since }
}
