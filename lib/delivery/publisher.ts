import type { Broker, GapReason, Message, Published, Target } from '../log/broker.js'
import type { SSEConnection } from '../connections/connection.js'
import { EPOCH, formatPlace } from '../log/cursor.js'
import { BrokerUnavailable, Closed, FilterNotShared, InvalidOption, InvalidTarget, SSEError } from '../errors.js'
import { EventPriority, PRIORITIES } from '../events/event.js'
import { Frame } from './frame.js'
import { degraded, up, type Health } from '../log/health.js'
import { createId } from '../util/id.js'
import { inContext, inNoContext } from '../util/async-context.js'
import type { Log } from '../util/logger.js'
import { NODE_EVENT } from '../cluster/node-message.js'
import { composeMessage } from '../events/message.js'
import type { ResolvedOptions } from '../options.js'
import type { Registry } from '../subscriptions/registry.js'
import type { Rights } from '../subscriptions/subscriptions.js'
import { isYes } from '../subscriptions/yes.js'
import type { BroadcastOptions, Delivery, EventInput } from '../../types/index.js'

/** Who is told of what is not for connections. */
export interface Listener {
  opened (): void
  /** The log is reached, or not; or it goes on elsewhere. */
  state (state: 'up' | 'down'): void
  /** The log has lost its continuity; see `Sink.gap`. `state` follows. */
  gap (reason: GapReason, commandsKept: boolean): void
  /** A node has told the others something; `seq` is its place in the log, 0 when it has none. */
  told (text: string, seq: number): void
}

/**
 * How a message reaches the other nodes: `logged`, in the order of the log, and read also by a node that was away; `ordered`,
 * among the events, as ephemeral as those may be; `apart`, on the channel of nodes.
 */
export type NodeWay = 'logged' | 'ordered' | 'apart'

const NO_TARGET: Target = { clientIds: [] }

/** This node's side of the log: events go in checked, and come back, from all nodes alike, to those they are for. */
export class Publisher {
  readonly #options: ResolvedOptions
  readonly #broker: Broker
  readonly #registry: Registry<SSEConnection>
  readonly #rights: Rights
  readonly #listener: Listener
  readonly #log: Log
  readonly nodeId = createId()
  #health = degraded('The event log is not open')
  #state: 'up' | 'down' | null = null
  #position = 0
  /** Of each priority; where nothing is known of it, the position when that was so. */
  readonly newest: number[] = new Array(PRIORITIES).fill(0)
  #messages = 0
  #deliveries = 0
  #opening: Promise<void> | null = null
  #opened = false
  #closed = false

  constructor (options: ResolvedOptions, broker: Broker, registry: Registry<SSEConnection>, rights: Rights, listener: Listener, log: Log) {
    this.#options = options
    this.#broker = broker
    this.#registry = registry
    this.#rights = rights
    this.#listener = listener
    this.#log = log
  }

  /** Whether other nodes share the log. */
  get shared (): boolean {
    return this.#broker.shared
  }

  get epoch (): string {
    return this.#broker.epoch
  }

  /** Newest sequence number that has been delivered on this node. */
  get position (): number {
    return this.#position
  }

  /** Messages delivered to this node so far. */
  get messages (): number {
    return this.#messages
  }

  /** One for each message and connection. */
  get deliveries (): number {
    return this.#deliveries
  }

  get health (): Health {
    return this.#health
  }

  get isOpen (): boolean {
    return this.#opened
  }

  /** Opens the log, once. Rejects with SSE_ERR_CLOSED when it has been closed, also before it was ever opened. */
  open (): Promise<void> {
    if (this.#closed) return Promise.reject(new Closed())
    return (this.#opening ??= this.#open().catch(error => {
      // The next call tries again.
      this.#opening = null
      throw error
    }))
  }

  async #open (): Promise<void> {
    // In no context: what the broker schedules delivers for all publishers.
    await inNoContext(() => this.#broker.open({
      deliver: message => {
        if (message.event !== NODE_EVENT) return this.#deliver(message, true)
        this.#passed(message)
        this.#listener.told(message.data, message.seq)
        return 0
      },
      gap: (reason, err, commandsKept = false) => {
        this.#assertEpoch()
        this.#loseContinuity(reason)
        this.#listener.gap(reason, commandsKept)
        this.#listener.state('up')
        if (err !== undefined) this.#log.warn({ err, reason }, 'The event log has lost its continuity; connected clients are sent a gap')
      },
      state: (state, err) => {
        if (this.#closed) return
        this.#health = state === 'up' ? up() : degraded(err?.message ?? 'The event log cannot be reached', this.#health)
        // Else only the reason has changed.
        if (state === this.#state) return
        this.#state = state
        this.#listener.state(state)
        if (state === 'down') this.#log.error({ err }, 'The event log cannot be reached')
        else this.#log[this.#opened ? 'info' : 'debug']({}, 'The event log is reached')
      }
    }, this.#options.history))
    // While it was opening: what is for an open log is not to begin.
    if (this.#closed) throw new Closed()
    this.#assertEpoch()
    this.#goTo(this.#broker.position)
    this.#opened = true
    this.#listener.opened()
  }

  /** It is written to clients as it is. */
  #assertEpoch (): void {
    const { epoch } = this.#broker
    if (EPOCH.test(epoch)) return
    const error = new InvalidOption('broker', `has the epoch ${JSON.stringify(epoch)}: it must match ${EPOCH.source}`)
    this.#health = degraded(error.message, this.#health)
    throw error
  }

  async close (): Promise<void> {
    this.#closed = true
    this.#health = degraded('The event log is closed')
    if (this.#opening !== null) await this.#broker.close()
  }

  async publish (event: EventInput, options: BroadcastOptions): Promise<Delivery> {
    const message = composeMessage(event, options, this.#options)
    const local = options.local === true
    if (message.target.filter !== undefined && this.#broker.shared && !local) throw new FilterNotShared()
    // One that does not go through the broker waits all the same: published from inside a delivery, it comes after it.
    if (local || !this.#opened) await this.open()
    if (this.#closed) throw new Closed()
    if (local) return { id: null, delivered: this.#deliver(message, false) }
    try {
      const answer = this.#broker.publish(message)
      const published: unknown = isPublished(answer) ? answer : await answer
      if (!isPublished(published)) throw new BrokerUnavailable('answered with something else than { seq, delivered }; whether the event was published is not known')
      const { seq, delivered } = published
      return { id: seq === null ? null : formatPlace(this.#broker.epoch, seq), delivered }
    } catch (cause) {
      if (cause instanceof SSEError) throw cause
      // What a broker of somebody else's says of its failure is for the log, not for whoever called the route.
      throw new BrokerUnavailable('failed; whether the event was published is not known', { cause })
    }
  }

  /** Delivers a message on this node only, past the log. */
  announce (message: Pick<Message, 'event' | 'data' | 'target'>): void {
    this.#deliver({ ...message, priority: EventPriority.NORMAL, retry: undefined, key: undefined, ephemeral: true, seq: 0 }, false)
  }

  /** Tells all nodes something. */
  async tell (text: string, way: NodeWay): Promise<void> {
    await this.open()
    if (this.#closed) throw new Closed()
    // Who returns, or is slow, reads it in the log: it is for no connection.
    await this.#broker.publish({ event: NODE_EVENT, data: text, priority: EventPriority.NORMAL, target: NO_TARGET, ephemeral: way !== 'logged', ...(way !== 'ordered' && { channel: 'node' }) })
  }

  /** In no context: `authorizeTopic` and what wraps a response run in the same context at each delivery, here and on other nodes. */
  #deliver (message: Message, fromLog: boolean): number {
    return inNoContext(() => this.#give(message, fromLog))
  }

  #give (message: Message, fromLog: boolean): number {
    let frame: Frame | null = null
    let delivered = 0
    // The application's code runs before anything is given out: a connection that it closes meanwhile names its exact place.
    for (const connection of this.#receivers(message.target)) {
      frame ??= Frame.ofMessage(message, this.#broker.epoch, fromLog)
      if (connection.receive(frame)) delivered++
    }
    this.#passed(message)
    this.#messages++
    this.#deliveries += delivered
    return delivered
  }

  #receivers (target: Target): readonly SSEConnection[] {
    let receivers = this.#registry.select(target)
    if (this.#rights.limits(target)) receivers = receivers.filter(connection => this.#rights.permits(connection, target))
    if (target.filter === undefined) return receivers
    return inFilterContext(target, () => receivers.filter(connection => this.#passes(target, connection)))
  }

  #passed ({ seq, priority }: Message): void {
    if (seq > 0) this.#position = this.newest[priority] = seq
  }

  /** Whether a connection that the target names gets the message: by its rights, and by the application's filter. */
  admits (target: Target, connection: SSEConnection): boolean {
    return this.#rights.permits(connection, target) && (target.filter === undefined || inFilterContext(target, () => this.#passes(target, connection)))
  }

  /** One that throws leaves the connection out. */
  #passes ({ filter }: Target, connection: SSEConnection): boolean {
    try {
      return isYes(filter!(connection), () => new InvalidTarget('has an async filter: it must answer true or false at once'))
    } catch (err) {
      this.#log.error({ err, clientId: connection.clientId }, 'A broadcast filter threw; the connection is left out')
      return false
    }
  }

  /** What the log has up to there may be of any priority. */
  #goTo (position: number): void {
    this.#position = position
    this.newest.fill(position)
  }

  #loseContinuity (reason: GapReason): void {
    this.#goTo(this.#broker.position)
    for (const connection of this.#registry.all()) connection.fallOut(reason)
  }
}

/** Calls a function in the context of the filter's publisher. A broker that copies the target may have lost it. */
function inFilterContext<T> ({ filterContext }: Target, task: () => T): T {
  return filterContext === undefined ? task() : inContext(filterContext, task)
}

/** Of a broker of somebody else's nothing is taken for granted: its numbers become ids. */
function isPublished (answer: unknown): answer is Published {
  const { seq, delivered } = (answer ?? {}) as Partial<Published>
  return (seq === null || Number.isSafeInteger(seq)) && Number.isSafeInteger(delivered)
}
