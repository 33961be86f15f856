import { MissedCommands } from './missed-commands.js'
import { withAnnounced, type ArgumentsOf, type Commands, type Presence, type ResultOf } from './commands.js'
import type { Dispatcher, FrameReceiver } from '../delivery/dispatcher.js'
import type { EventLog, NodeWay } from '../log/event-log.js'
import { Closed } from '../errors.js'
import type { GapReason } from '../log/broker.js'
import type { Health } from '../log/health.js'
import { inTime } from '../util/timeout.js'
import type { Clock } from '../util/clock.js'
import type { Log } from '../util/logger.js'
import { Membership } from './membership.js'
import { decodeNodeMessage, encodeNodeMessage, type NodeMessage, type Report, type Saying } from './node-message.js'
import { PresenceList, type PresenceOptions } from './presence.js'
import type { Member, Registry } from '../subscriptions/registry.js'
import { ScatterGather, type Outcome } from './scatter-gather.js'

/** One node, as it said of itself; this one as it is now, the others as of `heardAt`. */
export interface NodeStats {
  /** Made anew at each start. */
  readonly nodeId: string
  /** Option `cluster.nodeName`, or null. */
  readonly name: string | null
  /** By that node's clock, in milliseconds since the epoch. */
  readonly startedAt: number
  /** Open streams. */
  readonly connections: number
  readonly users: number
  /** Distinct topics and patterns held. */
  readonly subscriptions: number
  /** See `health()`. */
  readonly status: Health['status']
  readonly reason?: string
  /** By this node's clock, in milliseconds since the epoch. */
  readonly heardAt: number
}

export interface ClusterStats {
  /** The nodes that live, this one first. */
  readonly nodes: readonly NodeStats[]
  /** Open streams on all of them. */
  readonly connections: number
  /** The sum of the nodes' counts: a user with streams on two nodes counts twice. */
  readonly users: number
  /** The sum of the nodes' counts: a topic that is held on two nodes counts twice. */
  readonly subscriptions: number
}

/** The rest of the node, as far as the cluster uses it. */
interface Surroundings {
  readonly nodeId: string
  readonly options: { readonly clock: Clock, readonly cluster: ClusterOptions, readonly presenceEvents: PresenceOptions }
  readonly commands: Commands
  readonly registry: Registry<Member>
  readonly eventLog: EventLog
  readonly dispatcher: Dispatcher<FrameReceiver>
  readonly log: Log
  /** This node has missed a command that may have taken rights away. */
  onMissed (): void
}

/** A new node has been greeted by all others by then. */
const SETTLE_MS = 500
/** Many nodes may greet at once: they are answered together. */
const ANSWER_DELAY_MS = 20

export interface ClusterOptions {
  readonly nodeName?: string | undefined
  readonly heartbeatIntervalMs: number
  readonly answerTimeoutMs: number
}

/** This node among the others: what they tell each other, and what comes of it. @internal */
export class Cluster {
  readonly #clock: Clock
  readonly #nodeId: string
  readonly #registry: Registry<Member>
  readonly #eventLog: EventLog
  readonly #onMissed: () => void
  readonly #options: ClusterOptions
  readonly #log: Log
  readonly #membership: Membership
  readonly #scatter: ScatterGather
  readonly #presence: PresenceList | null
  readonly #commands = new MissedCommands()
  readonly #startedAt: number
  /** When it will have heard of all others, by `performance.now()`. */
  #settledAt = Infinity
  #open = false
  #closed = false
  #answering: NodeJS.Timeout | null = null
  /** Whether a change of the presence list was not sent: the other nodes may hold as many entries, and find nothing missing. */
  #unsent = false

  constructor ({ nodeId, options: { clock, cluster: options, presenceEvents }, commands, registry, eventLog, dispatcher, log, onMissed }: Surroundings) {
    this.#clock = clock
    this.#startedAt = clock.wall()
    this.#nodeId = nodeId
    this.#registry = registry
    this.#eventLog = eventLog
    this.#onMissed = onMissed
    this.#options = options
    this.#log = log
    this.#membership = new Membership(clock, options.heartbeatIntervalMs, {
      beat: () => {
        const told = this.#beat('beat')
        if (this.#unsent) {
          this.#unsent = false
          this.#presence?.tellAll()
        }
        return told
      },
      gone: nodeId => {
        this.#scatter.gone(nodeId)
        this.#presence?.gone(nodeId)
      }
    })
    this.#presence = presenceEvents.topics.length === 0
      ? null
      : new PresenceList(clock, presenceEvents, nodeId, {
        say: saying => this.#tell(saying),
        announce: (event, topic, userId) => dispatcher.announce({ event: `sse:${event}`, data: JSON.stringify({ subscriptionId: topic, userId }), target: { subscriptionIds: [topic] } }, eventLog.epoch)
      })
    if (this.#presence !== null) registry.observe(this.#presence)
    this.#scatter = new ScatterGather(commands, {
      shared: eventLog.shared,
      answerTimeoutMs: options.answerTimeoutMs,
      others: () => this.#membership.ids(),
      settlesInMs: () => Math.max(0, this.#settledAt - performance.now()),
      say: (saying, way) => this.#say(saying, way)
    }, log)
  }

  /** Joins the others. The log is open. */
  open (): void {
    if (!this.#eventLog.shared || this.#closed) return
    this.#open = true
    const { epoch, position } = this.#eventLog
    this.#commands.open(epoch, position)
    this.#membership.start()
    this.#greet()
  }

  /** Leaves the others, with a word when that is possible. */
  async close (): Promise<void> {
    this.#closed = true
    this.#presence?.close()
    if (this.#answering !== null) clearTimeout(this.#answering)
    if (!this.#open) return
    this.#open = false
    this.#membership.stop()
    this.#scatter.close()
    // A log that does not answer must not hold up the end.
    await inTime(this.#say({ kind: 'bye' }, 'apart'), this.#options.answerTimeoutMs).catch(() => {})
  }

  /** The log is reached, or not; or it goes on elsewhere. */
  onLog (state: 'up' | 'down'): void {
    if (!this.#open) return
    this.#membership.listen(state === 'up')
    // Others may have given this node up, or have come and gone.
    if (state === 'up') this.#greet()
  }

  /** The log has lost its continuity. See `Sink.gap`. */
  onGap (reason: GapReason, commandsKept: boolean | undefined): void {
    if (!this.#open) return
    const { epoch, position } = this.#eventLog
    if (this.#commands.moved(epoch, position, reason, commandsKept)) this.#missed()
    // With the log went what was said there and is not answered yet.
    this.#scatter.again()
  }

  #missed (): void {
    this.#log.warn({}, 'This node was away for so long that it has missed commands of other nodes; the streams of its users end, and come back with the rights of today')
    this.#onMissed()
  }

  /** Takes a message that a node, maybe this one, has published. */
  receive (text: string, seq: number): void {
    if (seq > 0) this.#commands.heard(seq)
    const message = decodeNodeMessage(text)
    if (message === null) return this.#log.debug({}, 'A message of another node is not understood')
    const { from } = message
    const own = from === this.#nodeId
    if (message.kind !== 'presence' && message.kind !== 'present') {
      if (!own) this.#hear(message)
      return
    }
    // Also of this node, so that all read the same list in the same order.
    if (!own) this.#membership.noticed(from)
    if (message.kind === 'presence') this.#presence?.changed(message)
    // Clients that are here already have asked who is present, and were not told of these users.
    else this.#presence?.listed(message, this.#membership.established || performance.now() > this.#settledAt)
  }

  #hear (message: NodeMessage): void {
    switch (message.kind) {
      case 'hello':
        this.#take(message.report)
        return this.#answer()
      case 'beat':
        this.#take(message.report)
        return this.#compare(message.report)
      case 'bye': return this.#membership.remove(message.from)
      case 'command':
        if (message.to?.includes(this.#nodeId) !== false) this.#scatter.obey(message)
        return
      case 'answer':
        if (message.to === this.#nodeId) this.#scatter.answered(message)
    }
  }

  #take (report: Report): void {
    this.#membership.heard(report)
    if (this.#commands.missed(report.left)) this.#missed()
  }

  /** See `ScatterGather.ask`. */
  async ask<N extends keyof Commands> (name: N, ...args: ArgumentsOf<N>): Promise<Outcome<ResultOf<N>>> {
    // Its own answer would be all there is: no connections, on nodes that are not asked.
    if (this.#closed) throw new Closed()
    return await this.#scatter.ask(name, ...args)
  }

  /** See `SSEManager.presence`. */
  async presence (subscription: string): Promise<Presence> {
    const { value, complete } = await this.ask('presence', subscription)
    return withAnnounced({ ...value!, complete: complete && value!.complete }, this.#presence?.usersOf(subscription) ?? [])
  }

  stats (): ClusterStats {
    const { everyMs, present, left, ...own } = this.#report()
    const nodes: NodeStats[] = [{ ...own, heardAt: this.#clock.wall() }]
    for (const { report: { everyMs, present, left, ...report }, heardAt } of this.#membership.all()) nodes.push({ ...report, heardAt })
    const sum = (count: 'connections' | 'users' | 'subscriptions') => nodes.reduce((total, node) => total + node[count], 0)
    return { nodes, connections: sum('connections'), users: sum('users'), subscriptions: sum('subscriptions') }
  }

  #report (): Report {
    const { status, reason } = this.#eventLog.health
    const { size: connections, users, subscriptions } = this.#registry
    const { nodeName: name = null, heartbeatIntervalMs: everyMs } = this.#options
    const { left } = this.#commands
    return { nodeId: this.#nodeId, name, startedAt: this.#startedAt, connections, users, subscriptions, status, ...(reason !== undefined && { reason }), everyMs, present: this.#presence?.size ?? null, ...(left !== undefined && { left }) }
  }

  #greet (): void {
    this.#settledAt = performance.now() + SETTLE_MS
    this.#beat('hello')
    this.#presence?.tellAll()
  }

  #answer (): void {
    this.#answering ??= setTimeout(() => {
      this.#answering = null
      this.#beat('beat')
      this.#presence?.tellAll()
    }, ANSWER_DELAY_MS)
  }

  #beat (kind: 'hello' | 'beat'): Promise<void> {
    this.#presence?.flush()
    return this.#tell({ kind, report: this.#report() })
  }

  /** Something that another node has said has not arrived here: it is asked to say all again. */
  #compare ({ nodeId, present }: Report): void {
    const settled = performance.now() > this.#settledAt
    if (settled && present !== null && this.#presence?.misses(nodeId, present) === true) this.#greet()
  }

  /** Says something that is said again later, or will be missed by nobody. */
  #tell (saying: Saying): Promise<void> {
    return this.#say(saying, 'apart').catch(err => {
      if (saying.kind === 'presence' || saying.kind === 'present') this.#unsent = true
      this.#log.debug({ err, kind: saying.kind }, 'The other nodes are not reached')
    })
  }

  async #say (saying: Saying, way: NodeWay): Promise<void> {
    await this.#eventLog.tell(encodeNodeMessage({ ...saying, from: this.#nodeId }), way)
  }
}
