import { LostCommands } from './lost-commands.js'
import { withAnnounced, type ArgumentsOf, type Commands, type Presence, type ResultOf } from './commands.js'
import type { Dispatcher, FrameReceiver } from '../delivery/dispatcher.js'
import type { EventLog, NodeDelivery } from '../log/event-log.js'
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

/** The state of one node: this node at present, other nodes at the time of their last report. */
export interface NodeStats {
  /** The id of the node, new at each start. */
  readonly nodeId: string
  /** The option `cluster.nodeName` of the node; null if it is not set. */
  readonly name: string | null
  /** Start of the node in milliseconds since the Unix epoch, by its own clock. */
  readonly startedAt: number
  /** Number of open streams. */
  readonly connections: number
  /** Number of distinct users with an open stream. */
  readonly users: number
  /** Number of distinct topics and patterns that connections hold. */
  readonly subscriptions: number
  /** Status of `health()` on the node. */
  readonly status: Health['status']
  /** Why the status is `degraded`; absent for `up`. */
  readonly reason?: string
  /** Time of the report in milliseconds since the Unix epoch, by the clock of this node. */
  readonly heardAt: number
}

/** The living nodes and the sums of their counts, returned by `clusterStats()`. */
export interface ClusterStats {
  /** The living nodes, this node first. */
  readonly nodes: readonly NodeStats[]
  /** Number of open streams on all nodes. */
  readonly connections: number
  /** Sum of the users of each node: a user with streams on two nodes counts twice. */
  readonly users: number
  /** Sum of the subscriptions of each node: a topic on two nodes counts twice. */
  readonly subscriptions: number
}

/** The parts of the node that the cluster uses. */
interface Surroundings {
  readonly nodeId: string
  readonly options: { readonly clock: Clock, readonly cluster: ClusterOptions, readonly presenceEvents: PresenceOptions }
  readonly commands: Commands
  readonly registry: Registry<Member>
  readonly eventLog: EventLog
  readonly dispatcher: Dispatcher<FrameReceiver>
  readonly log: Log
  /** Handles that this node may have missed a command that revoked rights. */
  onMissed (): void
}

/** Time within which all other nodes answer a greeting. */
const SETTLE_MS = 500
/** Delay of the answer to a greeting, so that several greetings are answered together. */
const ANSWER_DELAY_MS = 20

/** The options of the cluster; see `SSEOptions`. */
export interface ClusterOptions {
  readonly nodeName?: string | undefined
  readonly heartbeatIntervalMs: number
  readonly answerTimeoutMs: number
}

/** Connects this node with the other nodes: exchanges reports, commands and presence. @internal */
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
  readonly #commands = new LostCommands()
  readonly #startedAt: number
  /** Time from which all other nodes are known, by `performance.now()`. */
  #settledAt = Infinity
  #open = false
  #closed = false
  #answering: NodeJS.Timeout | null = null
  /** Whether a presence change could not be sent. Then the full list is sent, because other nodes may not notice the difference. */
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
    }, log)
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
      say: (saying, delivery) => this.#say(saying, delivery)
    }, log)
  }

  /** Joins the other nodes. The log must be open. */
  open (): void {
    if (!this.#eventLog.shared) return
    this.#open = true
    const { epoch, position } = this.#eventLog
    this.#commands.open(epoch, position)
    this.#membership.start()
    this.#greet()
  }

  /** Leaves the other nodes, and notifies them if the log is reachable. */
  async close (): Promise<void> {
    this.#closed = true
    this.#presence?.close()
    if (this.#answering !== null) clearTimeout(this.#answering)
    if (!this.#open) return
    this.#open = false
    this.#membership.stop()
    this.#scatter.close()
    // Limited in time: a log that does not answer must not delay the shutdown.
    await inTime(this.#say({ kind: 'bye' }, 'apart'), this.#options.answerTimeoutMs).catch(() => {})
  }

  /** Handles that the log has become reachable or unreachable, or has lost its continuity. */
  onLog (state: 'up' | 'down'): void {
    if (!this.#open) return
    this.#membership.listen(state === 'up')
    // Other nodes may have removed this node from their lists, and may have started or ended.
    if (state === 'up') this.#greet()
  }

  /** Handles lost continuity of the log. See `Sink.gap`. */
  onGap (reason: GapReason, commandsKept: boolean | undefined): void {
    if (!this.#open) return
    const { epoch, position } = this.#eventLog
    if (this.#commands.moved(epoch, position, reason, commandsKept)) this.#missed()
    // Unanswered commands may have been lost with the log, so they are sent again.
    this.#scatter.again()
  }

  #missed (): void {
    this.#log.warn({}, 'This node has missed commands of other nodes; the streams of its users are closed, and clients reconnect with their current rights')
    this.#onMissed()
  }

  /** Handles a message of any node, including this one. */
  receive (text: string, seq: number): void {
    // An answer after the `bye` of this node would add it to the lists of the others again.
    if (this.#closed) return
    if (seq > 0) this.#commands.heard(seq)
    const message = decodeNodeMessage(text)
    if (message === null) return this.#log.debug({}, 'Ignored an unknown message of another node')
    const { from } = message
    const own = from === this.#nodeId
    if (message.kind !== 'presence' && message.kind !== 'present' && message.kind !== 'leaving') {
      if (!own) this.#hear(message)
      return
    }
    // Presence changes of this node are applied too, so that all nodes apply the same changes in the same order.
    if (!own) this.#membership.noticed(from)
    if (message.kind === 'presence') this.#presence?.changed(message)
    // Clients of an established node may have read the list without these users, so the users are announced.
    else if (message.kind === 'present') this.#presence?.listed(message, this.#established)
    // An established node has seen these users leave.
    else if (!this.#established) this.#presence?.lingering(message)
  }

  /** Whether this node has received the lists of all nodes that were there before it. */
  get #established (): boolean {
    return this.#membership.established || performance.now() > this.#settledAt
  }

  #hear (message: NodeMessage): void {
    switch (message.kind) {
      case 'hello':
        this.#take(message.report)
        return this.#answer()
      case 'beat':
        this.#take(message.report)
        return this.#compare(message.report)
      case 'bye': return this.#membership.closed(message.from)
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
    // After `close()`, only this node would answer, and connections of other nodes would seem not to exist.
    if (this.#closed) throw new Closed()
    return await this.#scatter.ask(name, ...args)
  }

  /** See `SSEManager.presence`. */
  async presence (subscription: string): Promise<Presence> {
    const { value, complete, unanswered } = await this.ask('presence', subscription)
    const presence = { ...value!, complete: complete && value!.complete }
    if (this.#presence === null) return presence
    // A node with too many users has listed only some: the others are not absent.
    return withAnnounced(presence, this.#presence.announced(subscription, value!.complete ? undefined : unanswered))
  }

  /** See `SSEManager.clusterStats`. */
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

  /** Greets again if presence changes of another node were lost, so that it sends its full list. */
  #compare ({ nodeId, present }: Report): void {
    const settled = performance.now() > this.#settledAt
    if (settled && present !== null && this.#presence?.misses(nodeId, present) === true) this.#greet()
  }

  /** Publishes a message that is repeated later or may be lost. */
  #tell (saying: Saying): Promise<void> {
    return this.#say(saying, 'apart').catch(err => {
      if (saying.kind === 'presence' || saying.kind === 'present' || saying.kind === 'leaving') this.#unsent = true
      this.#log.debug({ err, kind: saying.kind }, 'Sending a message to the other nodes failed')
    })
  }

  async #say (saying: Saying, delivery: NodeDelivery): Promise<void> {
    await this.#eventLog.tell(encodeNodeMessage({ ...saying, from: this.#nodeId }), delivery)
  }
}
