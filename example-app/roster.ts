import type { FastifyInstance } from 'fastify'
import type { ConnectionRow } from './events.js'

const SETTLE_MS = 200
const REFRESH_MS = 2_000
const ROWS = 50

/** Who is connected, told to the pages soon after it changes, and every two seconds for the counters. */
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

  /** Many changes close together are told once. */
  changed (): void {
    this.#settling ??= setTimeout(() => {
      this.#settling = null
      this.#publish('presence', { users: this.users() })
      this.#publishRows()
    }, SETTLE_MS)
  }

  users (): string[] {
    const present = new Set<string>()
    for (const { userId } of this.#app.sse.connections()) if (userId !== null) present.add(userId)
    return [...present].sort()
  }

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

  /** A state, not a history: nobody needs the last one after a cut, and of two waiting ones only the newer counts. */
  #publish (resource: 'presence' | 'connections', data: object): void {
    this.#app.sse.broadcastData(resource, data, { subscriptionIds: [resource], ephemeral: true, key: resource })
      .catch((error: unknown) => { this.#app.log.warn({ err: error }, `${resource} could not be published`) })
  }
}

/** The part of a User-Agent a person recognises. */
function programOf (userAgent: string): string {
  for (const name of ['Edg', 'OPR', 'Firefox', 'Chrome', 'Safari', 'curl']) {
    const version = userAgent.match(new RegExp(`\\b(?:Headless)?${name}/(\\d+)`))?.[1]
    if (version !== undefined) return `${{ Edg: 'Edge', OPR: 'Opera' }[name] ?? name} ${version}`
  }
  return userAgent.slice(0, 20) || 'unknown'
}
