import type { FastifyInstance } from 'fastify'
import type { ConnectionRow } from './events.js'

const SETTLE_MS = 200
const REFRESH_MS = 2_000
const ROWS = 50

/**
 * Publishes the connected users and the table of connections: shortly after each change, and every two seconds for the counters of the
 * table.
 */
export class Roster {
  readonly #app: FastifyInstance
  #settling: NodeJS.Timeout | null = null
  #refresh: NodeJS.Timeout | null = null

  constructor (app: FastifyInstance) {
    this.#app = app
  }

  start (): void {
    this.#refresh = setInterval(() => { this.#publishRows() }, REFRESH_MS)
  }

  stop (): void {
    if (this.#refresh !== null) clearInterval(this.#refresh)
    if (this.#settling !== null) clearTimeout(this.#settling)
  }

  /** Publishes a change. Changes within 200 ms are published together. */
  changed (): void {
    this.#settling ??= setTimeout(() => {
      this.#settling = null
      this.#publish('presence', { users: this.users() })
      this.#publishRows()
    }, SETTLE_MS)
  }

  /** Returns the ids of the connected users, sorted. */
  users (): string[] {
    const present = new Set<string>()
    for (const { userId } of this.#app.sse.connections()) if (userId !== null) present.add(userId)
    return [...present].sort()
  }

  /** Returns the rows of the connection table, oldest connection first. */
  rows (): ConnectionRow[] {
    const rows: ConnectionRow[] = []
    for (const connection of this.#app.sse.connections()) {
      if (rows.length === ROWS) break
      const { ip, userAgent, connectedAt } = connection.clientInfo
      const { sentEvents, queuedBytes } = connection.stats()
      rows.push({
        clientId: connection.clientId,
        userId: connection.userId ?? '',
        ip,
        agent: programOf(userAgent),
        connectedAt,
        subscriptions: [...connection.subscriptions],
        sentEvents,
        queuedBytes
      })
    }
    return rows.sort((a, b) => a.connectedAt - b.connectedAt)
  }

  #publishRows (): void {
    this.#publish('connections', { rows: this.rows(), total: this.#app.sse.connectionCount })
  }

  /**
   * Publishes a state as an ephemeral event with a conflation key: a reconnecting client needs no old state, and a slow client only the
   * newest.
   */
  #publish (resource: 'presence' | 'connections', data: object): void {
    this.#app.sse.broadcastData(resource, data, { subscriptionIds: [resource], ephemeral: true, key: resource })
      .catch((error: unknown) => { this.#app.log.warn({ err: error }, `${resource} could not be published`) })
  }
}

/** Returns name and version of the program in a User-Agent header. */
function programOf (userAgent: string): string {
  for (const name of ['Edg', 'OPR', 'Firefox', 'Chrome', 'Safari', 'curl']) {
    const version = userAgent.match(new RegExp(`\\b(?:Headless)?${name}/(\\d+)`))?.[1]
    if (version !== undefined) return `${{ Edg: 'Edge', OPR: 'Opera' }[name] ?? name} ${version}`
  }
  return userAgent.slice(0, 20) || 'unknown'
}
