/** The health of the event log on this node. */
export interface Health {
  /**
   * - `up`: published events are logged and delivered.
   * - `degraded`: no event can be logged, or this node is late in reading the log. Clients stay connected and receive `local`
   *   broadcasts.
   */
  readonly status: 'up' | 'degraded'
  /** Why the status is `degraded`; absent for `up`. */
  readonly reason?: string
  /** Start of the current status in milliseconds since the Unix epoch. */
  readonly since: number
}

/** Returns the health `up`, since the given time. */
export function up (since: number): Health {
  return { status: 'up', since }
}

/** Returns the health `degraded`. If `before` was degraded too, its `since` is kept: only the reason has changed. */
export function degraded (reason: string, since: number, before?: Health): Health {
  return { status: 'degraded', reason, since: before?.status === 'degraded' ? before.since : since }
}
