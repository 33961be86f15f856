import { addressOf } from './address.js'
import { TooManyConnections, TooManyIpConnections, TooManyUserConnections } from '../errors.js'

export interface CapacityOptions {
  readonly maxConnections: number
  readonly maxConnectionsPerUser: number
  readonly maxConnectionsPerIp: number
}

/** How many may be connected, or wait to be admitted: in total, of one user, from one address. Limits that are 0 are not counted. */
export class Capacity {
  readonly limits: CapacityOptions
  readonly perUser = new Map<string, number>()
  readonly perAddress = new Map<string, number>()
  #taken = 0

  constructor (limits: CapacityOptions) {
    this.limits = limits
  }

  /** Reservations taken. */
  get taken (): number {
    return this.#taken
  }

  /**
   * A reservation for a client that nothing is known of but its address; null when nothing is limited.
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

/** The place of one client, from before it is authenticated until its response has closed. */
export class Reservation {
  readonly #capacity: Capacity
  readonly #address: string | null
  #userId: string | null = null
  #left = false

  constructor (capacity: Capacity, address: string | null) {
    this.#capacity = capacity
    this.#address = address
  }

  get left (): boolean {
    return this.#left
  }

  /**
   * Assigns the authenticated user.
   * @throws SSE_ERR_TOO_MANY_USER_CONNECTIONS
   */
  assign (userId: string | null): void {
    const { limits: { maxConnectionsPerUser }, perUser } = this.#capacity
    if (maxConnectionsPerUser === 0 || userId === this.#userId || this.#left) return
    if (userId !== null && !add(perUser, userId, maxConnectionsPerUser)) throw new TooManyUserConnections()
    if (this.#userId !== null) subtract(perUser, this.#userId)
    this.#userId = userId
  }

  /** Once or more. */
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
