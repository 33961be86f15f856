import { Admission } from './access/admission.js'
import { DisconnectedUsers } from './access/disconnected-users.js'
import { Tickets } from './access/tickets.js'
import { Cluster } from './cluster/cluster.js'
import { createCommands, endUncertain } from './cluster/commands.js'
import type { SSEConnection } from './connections/connection.js'
import { ConnectionContext } from './connections/context.js'
import { Drain } from './connections/drain.js'
import { Statistics } from './connections/statistics.js'
import { ClockJump } from './connections/clock-jump.js'
import { Dispatcher } from './delivery/dispatcher.js'
import { Publisher } from './delivery/publisher.js'
import { EventLog } from './log/event-log.js'
import { memoryBroker } from './log/memory-broker.js'
import type { ResolvedOptions } from './options.js'
import { Audience } from './subscriptions/audience.js'
import { Registry } from './subscriptions/registry.js'
import { Authorization } from './subscriptions/authorization.js'
import { createId } from './util/id.js'
import type { Log } from './util/logger.js'

/** Constructs the parts of one node and connects them. No other module constructs them. @internal */
export class Node {
  readonly id = createId()
  readonly options: ResolvedOptions
  readonly registry = new Registry<SSEConnection>()
  readonly eventLog: EventLog
  readonly publisher: Publisher<SSEConnection>
  readonly cluster: Cluster
  readonly tickets: Tickets
  readonly admission: Admission
  readonly statistics: Statistics
  readonly #context: ConnectionContext
  readonly #drain: Drain
  #closing: Promise<void> | null = null

  constructor (options: ResolvedOptions, log: Log) {
    this.options = options
    const { registry } = this
    const { clock } = options
    const broker = options.broker ?? memoryBroker()
    const audience = new Audience(options, registry, log)
    const subscriptions = new Authorization(options, registry, log)
    const disconnections = new DisconnectedUsers()
    const dispatcher = new Dispatcher(audience)
    this.eventLog = new EventLog(broker, options, {
      opened: () => {
        // A publish during `close()` can open the log. The node must not start again.
        if (this.#closing !== null) return
        this.#context.wheel.start()
        this.cluster.open()
      },
      deliver: (message, epoch) => dispatcher.deliver(message, epoch, true),
      told: (text, seq) => this.cluster.receive(text, seq),
      gap: (reason, commandsKept) => {
        for (const connection of registry.all()) connection.fallOut(reason)
        this.cluster.onGap(reason, commandsKept)
      },
      state: state => this.cluster.onLog(state)
    }, log)
    this.publisher = new Publisher(options, this.eventLog, dispatcher)
    this.cluster = new Cluster({
      nodeId: this.id,
      options,
      commands: createCommands(registry, subscriptions, disconnections),
      registry,
      eventLog: this.eventLog,
      dispatcher,
      log,
      onMissed: () => endUncertain(registry, subscriptions, disconnections)
    })
    this.statistics = new Statistics(registry, dispatcher)
    this.#context = new ConnectionContext({
      options,
      log,
      broker,
      eventLog: this.eventLog,
      audience,
      subscriptions,
      onEnd: (connection, reason) => {
        registry.remove(connection)
        this.statistics.ended(connection, reason)
        this.#drain.left()
      }
    })
    const { wheel } = this.#context
    wheel.schedule(new ClockJump(clock, wheel, () => { for (const connection of registry.all()) connection.onClockAhead() }), clock.monotonic())
    this.#drain = new Drain(registry, options, wheel)
    this.tickets = new Tickets(options, broker)
    this.admission = new Admission(options, registry, subscriptions, this.tickets, disconnections, this.#context, this.eventLog)
  }

  /** Closes all connections and rejects new ones. Publishing remains possible. */
  drain (): Promise<void> {
    this.admission.close()
    return this.#drain.begin()
  }

  /** Drains, then closes the event log. A second call returns the promise of the first. */
  close (): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  async #close (): Promise<void> {
    await this.drain()
    this.#context.wheel.stop()
    await this.cluster.close()
    await this.eventLog.close()
  }
}
