import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import type { Claims } from '../events/event-input.js'
import { isEnd, type SSEUser } from './authentication.js'
import type { Broker } from '../log/broker.js'
import { InvalidTicket, TicketNotIssued } from '../errors.js'
import { faultOfId, isId } from '../events/target.js'
import { assertSubscription } from '../events/topic.js'
import { kindOf, quote, shown } from '../util/quote.js'
import { alternatives } from '../util/suggestion.js'
import type { Clock } from '../util/clock.js'

/** The content of a ticket, the argument of `issueTicket()`. A ticket is signed, not encrypted: the client can read it. */
export interface TicketGrant {
  /** The user of the stream. Must not be empty. */
  readonly userId: string
  /** Any JSON value of the application; it becomes `connection.claims`. */
  readonly claims?: Claims
  /**
   * Expiry of the stream's rights in milliseconds since the Unix epoch. Null or absent: the rights do not expire. `undefined` and times in
   * seconds are rejected.
   */
  readonly expiresAt?: number | null
  /** Lifetime of the ticket in milliseconds, 1,000 to 600,000. Default: option `ticketTtlMs`. */
  readonly ttlMs?: number
  /** Topics and patterns that the stream holds from the start. The ticket grants them: `authorizeSubscription` is not called for them. */
  readonly subscriptions?: readonly string[]
}

/** The user of a ticket that was accepted. */
export class Ticket implements SSEUser {
  readonly userId: string
  declare readonly claims?: Claims
  declare readonly expiresAt?: number
  /** Topics and patterns that the ticket grants. */
  readonly subscriptions: readonly string[]

  constructor ({ user, claims, rights, subscriptions }: Content) {
    this.userId = user
    if (claims !== undefined) this.claims = claims
    if (rights !== undefined) this.expiresAt = rights
    this.subscriptions = subscriptions ?? []
  }
}

interface Content {
  readonly id: string
  /** Epoch of the log, which remembers used tickets. In another epoch the ticket could be used again, so it is rejected. */
  readonly log: string
  readonly user: string
  /** Expiry of the ticket in milliseconds since the Unix epoch. */
  readonly until: number
  readonly claims?: Claims | undefined
  /** Expiry of the user's rights; absent if they do not expire. */
  readonly rights?: number
  readonly subscriptions?: readonly string[] | undefined
}

const GRANT = ['userId', 'claims', 'expiresAt', 'ttlMs', 'subscriptions']
// Servers and proxies can reject longer URLs.
const MAX_LENGTH = 4096
const MIN_TTL_MS = 1_000
const MAX_TTL_MS = 600_000
const FORM = /^([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{43})$/
// Part of the signed text, because the secret can have other uses.
const PURPOSE = 'fastify-sse-manager ticket 1\n'
/** Used tickets are remembered for this time beyond their expiry, because the clocks of nodes differ. */
const CLOCK_SKEW_MS = 60_000

/** The options that concern tickets; see `SSEOptions`. */
export interface TicketOptions {
  readonly clock: Clock
  readonly ticketSecret?: string | readonly string[] | undefined
  readonly ticketTtlMs: number
  readonly maxSubscriptionsPerConnection: number
}

/** Issues and redeems tickets, which open one stream each. Pages need them because an EventSource cannot set headers. */
export class Tickets {
  readonly #secrets: readonly string[]
  readonly #options: TicketOptions
  readonly #broker: Pick<Broker, 'epoch' | 'claim'>

  /** @param broker its `claim` succeeds once for each ticket on all nodes */
  constructor (options: TicketOptions, broker: Pick<Broker, 'epoch' | 'claim'>) {
    this.#secrets = [options.ticketSecret ?? []].flat()
    this.#options = options
    this.#broker = broker
  }

  /** Whether the option `ticketSecret` is set. */
  get enabled (): boolean {
    return this.#secrets.length > 0
  }

  /**
   * Returns a new ticket.
   * @throws SSE_ERR_TICKET_NOT_ISSUED, SSE_ERR_INVALID_SUBSCRIPTION
   */
  issue (grant: TicketGrant): string {
    const refuse = (reason: string): never => { throw new TicketNotIssued(reason) }
    // With a misspelt `expiresAt`, the rights would never expire.
    if (kindOf(grant) !== 'an object') refuse(`issueTicket() takes an object { ${GRANT.join(', ')} }, got ${kindOf(grant)}`)
    for (const name of Object.keys(grant)) if (!GRANT.includes(name)) refuse(`issueTicket() has no property ${quote(name)}${alternatives(name, GRANT)}`)
    const { userId, claims, expiresAt, ttlMs = this.#options.ticketTtlMs, subscriptions } = grant
    const [secret = refuse('it needs the option ticketSecret')] = this.#secrets
    if (!isId(userId)) refuse(`userId ${faultOfId(userId)}`)
    if (!Number.isInteger(ttlMs) || ttlMs < MIN_TTL_MS || ttlMs > MAX_TTL_MS) refuse(`ttlMs must be an integer from ${MIN_TTL_MS} to ${MAX_TTL_MS}, got ${shown(ttlMs)}`)
    if (!isEnd(grant)) refuse('expiresAt must be a number, in milliseconds since the epoch, or null for rights that do not expire')
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
   * Redeems a ticket. Succeeds once for each ticket, on any node.
   * @throws SSE_ERR_INVALID_TICKET if the ticket is forged, expired or used; SSE_ERR_BROKER_UNAVAILABLE if that is not known
   */
  async redeem (ticket: string): Promise<Ticket> {
    const content = this.#read(ticket)
    if (content === null) throw new InvalidTicket()
    const remainingMs = content.until - this.#options.clock.wall()
    if (remainingMs <= 0 || !await this.#broker.claim(`ticket:${content.id}`, remainingMs + CLOCK_SKEW_MS)) throw new InvalidTicket()
    // Compared after the claim: the epoch is known only when the log is reached, and before that the claim rejects.
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
