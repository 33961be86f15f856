import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { isEnd, type SSEUser } from './authentication.js'
import type { Broker } from '../log/broker.js'
import { InvalidTicket, TicketNotIssued } from '../errors.js'
import { assertSubscription } from '../events/topic.js'
import type { Clock } from '../util/clock.js'

/** What a ticket is to say. It is signed, not encrypted: its holder can read it. */
export interface TicketGrant {
  readonly userId: string
  /** Found again on the connection; what JSON keeps of it. */
  readonly claims?: unknown
  /** When the rights of the stream end, in milliseconds since the epoch. Absent or null: they do not end by themselves. */
  readonly expiresAt?: number | null
  /** How long the ticket is good, in milliseconds, 1,000 to 600,000; default: option `ticketTtlMs`. */
  readonly ttlMs?: number
  /** Topics and patterns that the stream holds from the start. The ticket grants them: `authorizeSubscription` is not asked. */
  readonly subscriptions?: readonly string[]
}

/** A ticket that was shown: who its holder is. */
export class Ticket implements SSEUser {
  readonly userId: string
  readonly claims: unknown
  declare readonly expiresAt?: number
  readonly subscriptions: readonly string[]

  constructor ({ user, claims, rights, subscriptions }: Content) {
    this.userId = user
    this.claims = claims
    if (rights !== undefined) this.expiresAt = rights
    this.subscriptions = subscriptions ?? []
  }
}

interface Content {
  readonly id: string
  /** The log that remembers which tickets were shown: with another one this ticket might be shown again. */
  readonly log: string
  readonly user: string
  /** When the ticket ends, in milliseconds since the epoch. */
  readonly until: number
  readonly claims?: unknown
  readonly rights?: number
  readonly subscriptions?: readonly string[] | undefined
}

const GRANT = ['userId', 'claims', 'expiresAt', 'ttlMs', 'subscriptions']
// A URL with more is refused on its way.
const MAX_LENGTH = 4096
const MIN_TTL_MS = 1_000
const MAX_TTL_MS = 600_000
const FORM = /^([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{43})$/
// The key may have other uses.
const PURPOSE = 'fastify-sse-manager ticket 1\n'
/** That it was shown is remembered for longer than any node's clock may think it good. */
const CLOCK_SKEW_MS = 60_000

export interface TicketOptions {
  readonly clock: Clock
  readonly ticketSecret?: string | readonly string[] | undefined
  readonly ticketTtlMs: number
  readonly maxSubscriptionsPerConnection: number
}

/** Tickets that open one stream each: for browsers, whose EventSource sends no headers. */
export class Tickets {
  readonly #secrets: readonly string[]
  readonly #options: TicketOptions
  readonly #broker: Pick<Broker, 'epoch' | 'claim'>

  /** @param broker tells, on all nodes that share it, the first to show a ticket from all others. */
  constructor (options: TicketOptions, broker: Pick<Broker, 'epoch' | 'claim'>) {
    this.#secrets = [options.ticketSecret ?? []].flat()
    this.#options = options
    this.#broker = broker
  }

  /** Whether there are tickets here at all. */
  get enabled (): boolean {
    return this.#secrets.length > 0
  }

  /** Throws SSE_ERR_TICKET_NOT_ISSUED. */
  issue (grant: TicketGrant): string {
    const refuse = (reason: string): never => { throw new TicketNotIssued(reason) }
    // A misspelt expiresAt would be rights that never end.
    for (const name of Object.keys(grant)) if (!GRANT.includes(name)) refuse(`it has no ${JSON.stringify(name.slice(0, 80))}, only ${GRANT.join(', ')}`)
    const { userId, claims, expiresAt, ttlMs = this.#options.ticketTtlMs, subscriptions } = grant
    const [secret = refuse('it needs the option ticketSecret')] = this.#secrets
    if (typeof userId !== 'string' || userId === '') refuse('userId must be a string')
    if (!Number.isInteger(ttlMs) || ttlMs < MIN_TTL_MS || ttlMs > MAX_TTL_MS) refuse(`ttlMs must be an integer from ${MIN_TTL_MS} to ${MAX_TTL_MS}`)
    if (!isEnd(grant)) refuse('expiresAt must be a number, in milliseconds since the epoch, or null for rights that do not end')
    if (subscriptions !== undefined && (!Array.isArray(subscriptions) || subscriptions.length > this.#options.maxSubscriptionsPerConnection)) refuse(`subscriptions must be an array of at most ${this.#options.maxSubscriptionsPerConnection}`)
    subscriptions?.forEach(assertSubscription)
    const until = Math.min(this.#options.clock.wall() + ttlMs, expiresAt ?? Infinity)
    const content: Content = { id: randomBytes(16).toString('base64url'), log: this.#broker.epoch, user: userId, until, claims, ...(typeof expiresAt === 'number' && { rights: expiresAt }), subscriptions }
    const text = encode(content)
    const ticket = `${text}.${sign(text, secret).toString('base64url')}`
    if (ticket.length > MAX_LENGTH) refuse(`it would have ${ticket.length} characters, at most ${MAX_LENGTH} fit into a URL`)
    return ticket
  }

  /**
   * Takes a ticket, once.
   * @throws SSE_ERR_INVALID_TICKET for one that is forged, too old or was shown before, SSE_ERR_BROKER_UNAVAILABLE when that cannot be known.
   */
  async redeem (ticket: string): Promise<Ticket> {
    const content = this.#read(ticket)
    if (content === null) throw new InvalidTicket()
    const remainingMs = content.until - this.#options.clock.wall()
    if (remainingMs <= 0 || !await this.#broker.claim(`ticket:${content.id}`, remainingMs + CLOCK_SKEW_MS)) throw new InvalidTicket()
    // Compared only now: before the log is reached its epoch is not known, and the claim has failed.
    if (content.log !== this.#broker.epoch) throw new InvalidTicket()
    return new Ticket(content)
  }

  #read (ticket: string): Content | null {
    const [, text, signature] = (ticket.length > MAX_LENGTH ? null : FORM.exec(ticket)) ?? []
    if (text === undefined || signature === undefined) return null
    const given = Buffer.from(signature, 'base64url')
    if (!this.#secrets.some(secret => timingSafeEqual(sign(text, secret), given))) return null
    return JSON.parse(Buffer.from(text, 'base64url').toString()) as Content
  }
}

function encode (content: Content): string {
  try {
    return Buffer.from(JSON.stringify(content)).toString('base64url')
  } catch (cause) {
    throw new TicketNotIssued('claims have no JSON form', { cause })
  }
}

function sign (text: string, secret: string): Buffer {
  return createHmac('sha256', secret).update(PURPOSE).update(text).digest()
}
