import { Admission } from './access/admission.js'
import { DisconnectedUsers } from './access/disconnected-users.js'
import { Tickets } from './access/tickets.js'
import { Cluster } from './cluster/cluster.js'
import { createCommands, endUncertain } from './cluster/commands.js'
import { ConnectionList } from './cluster/connection-list.js'
import { NodeInspection } from './cluster/node-inspection.js'
import type { SSEConnection } from './connections/connection.js'
import { isCloseReason } from './connections/close-reason.js'
import { ConnectionContext } from './connections/context.js'
import { Drain } from './connections/drain.js'
import { Statistics } from './connections/statistics.js'
import { ClockJump } from './connections/clock-jump.js'
import { Dispatcher } from './delivery/dispatcher.js'
import { Publisher } from './delivery/publisher.js'
import { Telemetry } from './diagnostics/telemetry.js'
import type { Broker } from './log/broker.js'
import { EventLog } from './log/event-log.js'
import { memoryBroker } from './log/memory-broker.js'
import { MemoryRunStore } from './log/memory-run-store.js'
import type { ResolvedOptions } from './options.js'
import { Runs } from './runs/runs.js'
import { Audience } from './subscriptions/audience.js'
import { Registry } from './subscriptions/registry.js'
import { Authorization } from './subscriptions/authorization.js'
import { createId } from './util/id.js'
import type { Log } from './util/logger.js'

/** Constructs the parts of one node and connects them. No other module constructs them. @internal */
export class Node {
  readonly id = createId()
  readonly telemetry = new Telemetry(this.id)
  readonly options: ResolvedOptions
  /** Of any catalogue: only the manager's type knows which one. */
  readonly registry = new Registry<SSEConnection<any>>()
  readonly eventLog: EventLog
  readonly publisher: Publisher<SSEConnection>
  readonly cluster: Cluster
  readonly connectionList = new ConnectionList(this.id, this.registry)
  readonly tickets: Tickets
  readonly admission: Admission
  readonly statistics: Statistics
  readonly inspection: NodeInspection
  readonly broker: Broker
  /** Null: the broker is shared and keeps no runs. */
  readonly runs: Runs | null
  readonly #context: ConnectionContext
  readonly #drain: Drain
  #closing: Promise<void> | null = null

  constructor (options: ResolvedOptions, log: Log) {
    this.options = options
    const { registry, telemetry } = this
    const { clock } = options
    const broker = this.broker = options.broker ?? memoryBroker()
    const audience = new Audience(options, registry, log)
    const subscriptions = new Authorization(options, registry, log)
    const disconnections = new DisconnectedUsers()
    const dispatcher = new Dispatcher(audience)
    this.eventLog = new EventLog(broker, options, {
      opened: () => {
        this.#context.wheel.start()
        this.cluster.open()
      },
      deliver: (message, epoch) => dispatcher.deliver(message, epoch, true),
      told: (text, seq) => this.cluster.receive(text, seq),
      gap: (reason, commandsKept) => {
        for (const connection of registry.all()) connection.invalidate(reason)
        this.cluster.onGap(reason, commandsKept)
      },
      state: state => {
        telemetry.onHealth(state === 'up' ? 'up' : 'degraded')
        this.cluster.onLog(state)
      }
    }, log)
    this.publisher = new Publisher(options, this.eventLog, dispatcher, telemetry)
    this.statistics = new Statistics(registry, dispatcher, telemetry, broker)
    const runStore = broker.runs ?? (broker.shared ? null : new MemoryRunStore(clock, options.runs.maxBytes))
    this.runs = runStore === null ? null : new Runs(runStore, options, log, telemetry, () => this.eventLog.open())
    this.inspection = new NodeInspection(this.id, clock, registry, this.statistics, this.runs)
    this.cluster = new Cluster({
      nodeId: this.id,
      options,
      commands: createCommands(registry, subscriptions, disconnections, this.connectionList, this.inspection),
      registry,
      eventLog: this.eventLog,
      dispatcher,
      log,
      onMissed: () => endUncertain(registry, subscriptions, disconnections)
    })
    this.#context = new ConnectionContext({
      options,
      log,
      telemetry,
      broker,
      eventLog: this.eventLog,
      audience,
      subscriptions,
      onEnd: (connection, reason) => {
        registry.remove(connection)
        telemetry.onClose(connection, reason, isCloseReason(reason))
        this.#drain.left()
      }
    })
    const { wheel } = this.#context
    wheel.schedule(new ClockJump(clock, wheel, () => { for (const connection of registry.all()) connection.onClockAhead() }), clock.monotonic())
    this.#drain = new Drain(registry, options, wheel, log)
    this.tickets = new Tickets(options, broker)
    this.admission = new Admission(options, registry, subscriptions, this.tickets, disconnections, this.#context, this.eventLog)
  }

  /** Closes all connections and rejects new ones and new runs. Publishing remains possible. */
  drain (): Promise<void> {
    this.admission.close()
    this.runs?.drain()
    return this.#drain.begin()
  }

  /** Drains, then closes the event log. A second call returns the promise of the first. */
  close (): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  async #close (): Promise<void> {
    // A log that is not open yet is closed at once: what is published meanwhile would open it.
    const closed = this.eventLog.isOpen ? null : this.eventLog.close()
    await this.drain()
    await this.runs?.close()
    this.#context.close()
    await this.cluster.close()
    await (closed ?? this.eventLog.close())
  }
}
