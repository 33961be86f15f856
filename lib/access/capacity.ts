import { addressOf } from './address.js'
import { TooManyConnections, TooManyIpConnections, TooManyUserConnections } from '../errors.js'

/** The limits of connections; see `SSEOptions`. */
export interface CapacityOptions {
  readonly maxConnections: number
  readonly maxConnectionsPerUser: number
  readonly maxConnectionsPerIp: number
}

/** Counts open streams and requests that are being admitted: in total, per user and per address. A limit of 0 is not counted. */
export class Capacity {
  readonly limits: CapacityOptions
  /** Number of reservations by user id. */
  readonly perUser = new Map<string, number>()
  /** Number of reservations by address; see `addressOf`. */
  readonly perAddress = new Map<string, number>()
  #taken = 0

  constructor (limits: CapacityOptions) {
    this.limits = limits
  }

  /** Number of current reservations. */
  get taken (): number {
    return this.#taken
  }

  /**
   * Returns a reservation for a client that is not authenticated yet; null if there are no limits.
   * @throws SSE_ERR_TOO_MANY_CONNECTIONS, SSE_ERR_TOO_MANY_IP_CONNECTIONS
   */
  take (ip: string | undefined): Reservation | null {
    const { maxConnections, maxConnectionsPerUser, maxConnectionsPerIp } = this.limits
    if (maxConnections === 0 && maxConnectionsPerUser === 0 && maxConnectionsPerIp === 0) return null
    if (maxConnections > 0 && this.#taken >= maxConnections) throw new TooManyConnections()
    const address = maxConnectionsPerIp > 0 ? addressOf(ip) : null
    if (address !== null && !add(this.perAddress, address, maxConnectionsPerIp)) throw new TooManyIpConnections()
    this.#taken++
    return new Reservation(this, address)
  }

  /** @internal */
  free (): void {
    this.#taken--
  }
}

/** The count of one client in the limits, from before its authentication until its response closes. */
export class Reservation {
  readonly #capacity: Capacity
  readonly #address: string | null
  #userId: string | null = null
  #left = false

  constructor (capacity: Capacity, address: string | null) {
    this.#capacity = capacity
    this.#address = address
  }

  /** Whether the reservation was released. */
  get left (): boolean {
    return this.#left
  }

  /**
   * Counts the client for its user; null for an anonymous client.
   * @throws SSE_ERR_TOO_MANY_USER_CONNECTIONS
   */
  assign (userId: string | null): void {
    const { limits: { maxConnectionsPerUser }, perUser } = this.#capacity
    if (maxConnectionsPerUser === 0 || userId === this.#userId || this.#left) return
    if (userId !== null && !add(perUser, userId, maxConnectionsPerUser)) throw new TooManyUserConnections()
    if (this.#userId !== null) subtract(perUser, this.#userId)
    this.#userId = userId
  }

  /** Releases the reservation. Can be called more than once. */
  leave (): void {
    if (this.#left) return
    this.#left = true
    this.#capacity.free()
    if (this.#address !== null) subtract(this.#capacity.perAddress, this.#address)
    if (this.#userId !== null) subtract(this.#capacity.perUser, this.#userId)
  }
}

function add (counts: Map<string, number>, key: string, limit: number): boolean {
  const count = counts.get(key) ?? 0
  if (count >= limit) return false
  counts.set(key, count + 1)
  return true
}

function subtract (counts: Map<string, number>, key: string): void {
  const rest = counts.get(key)! - 1
  if (rest === 0) counts.delete(key)
  else counts.set(key, rest)
}
