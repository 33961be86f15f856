import type { PublisherOptions } from '../types/options.js'
import { Publisher, type Delivery } from './delivery/publisher.js'
import { Telemetry } from './diagnostics/telemetry.js'
import { BrokerUnavailable, SSEError } from './errors.js'
import type { AnyCatalogue, EventInput, RegisteredCatalogue } from './events/event-input.js'
import { assertPublishOptions, type BroadcastOptions, type PublishOptions } from './events/target.js'
import type { Broker, History, LogPosition, Published, PublishingLog, Sink } from './log/broker.js'
import { formatCursor } from './log/cursor.js'
import { EventLog, type LoggedBroker } from './log/event-log.js'
import { resolvePublisherOptions } from './options.js'
import { RunCalls } from './runs/run-calls.js'
import { Runs } from './runs/runs.js'
import { safeLog, warnings, type Log } from './util/logger.js'
import type { OutgoingMessage } from './events/message.js'

/** A broker that `open` opens for publishing only. */
class PublishingBroker implements LoggedBroker {
  readonly shared = true
  readonly position = 0
  readonly #broker: Broker
  #opened: PublishingLog | null = null

  constructor (broker: Broker) {
    this.#broker = broker
  }

  get epoch (): string {
    return this.#broker.epoch
  }

  async open (sink: Sink, history: History, now?: () => number): Promise<void> {
    this.#opened = await this.#broker.openForPublishing!(sink, history, now)
  }

  publish (message: OutgoingMessage): Published | Promise<Published> {
    return this.#broker.publish(message)
  }

  async end (): Promise<LogPosition> {
    try {
      return await this.#opened!.position()
    } catch (cause) {
      throw cause instanceof SSEError ? cause : new BrokerUnavailable('could not be asked for its position', { cause })
    }
  }

  close (): Promise<void> {
    return this.#broker.close()
  }
}

/** Number of connections of this process that receive something. */
const none = (): number => 0
const NOBODY = { opened: none, deliver: none, told: none, gap: none, state: none }

/**
 * Publishes events to the connections of all nodes, and produces runs that they read, from a process that is no node: a worker, a script,
 * a cron job. It reads nothing of the log. `createPublisher()` creates it.
 */
export class SSEPublisher<C extends AnyCatalogue = RegisteredCatalogue> extends RunCalls<PublishOptions, C> {
  /** @internal */
  readonly node: { readonly publisher: { publish (event: EventInput, options: BroadcastOptions): Promise<Delivery> }, readonly runs: Runs | null }
  readonly #broker: PublishingBroker
  readonly #log: EventLog
  #closing: Promise<void> | null = null

  /** @internal */
  constructor (options: PublisherOptions, logger: Log) {
    super()
    const resolved = resolvePublisherOptions(options)
    const log = safeLog(logger)
    const telemetry = new Telemetry(null)
    this.#broker = new PublishingBroker(resolved.broker)
    this.#log = new EventLog(this.#broker, resolved, NOBODY, log)
    const publisher = new Publisher(resolved, this.#log, NOBODY, telemetry)
    const { runs } = resolved.broker
    this.node = {
      publisher: {
        publish: async (event, options) => {
          assertPublishOptions(options)
          return await publisher.publish(event, options)
        }
      },
      runs: runs === undefined ? null : new Runs(runs, resolved, log, telemetry, () => this.#log.open())
    }
  }

  /**
   * Connects to the log. The first method that needs the log does so otherwise. Call it to notice at the start that the log cannot be
   * reached. After a rejection, the next call tries again.
   * @throws SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   */
  open (): Promise<void> {
    return this.#log.open()
  }

  /**
   * Resolves with the cursor of now, which it asks of the log. For a page that this process renders: call it, load the state, and let the
   * page open its stream with `?lastEventId=`.
   * @throws SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   */
  async position (): Promise<string> {
    await this.#log.open()
    const { epoch, position } = await this.#broker.end()
    return formatCursor(epoch, position)
  }

  /**
   * Ends the publisher as a node ends: its runs have `runs.drainMs` to end, and are `lost` then. Events that wait for the answer of the log
   * are answered; calls that still wait for the first connection are rejected with SSE_ERR_CLOSED. Until it is called, the connection keeps
   * the process alive. A second call returns the promise of the first.
   */
  close (): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  /** Closes the publisher at the end of a block with `await using`; see `close()`. */
  [Symbol.asyncDispose] (): Promise<void> {
    return this.close()
  }

  async #close (): Promise<void> {
    // A log that is not open yet is closed at once: what is published meanwhile would open it.
    const closed = this.#log.isOpen ? null : this.#log.close()
    await this.node.runs?.close()
    await (closed ?? this.#log.close())
  }
}

/**
 * Creates a publisher: it publishes events and produces runs for the connections of all nodes, from a process without HTTP. It opens
 * one connection to the log, with the first call, and reads and remembers nothing of the log. It is not in `clusterStats()`.
 * @param options the log that the nodes share, and what can be published
 * @param logger receives the log lines. Default: errors and warnings become process warnings.
 * @throws SSE_ERR_INVALID_OPTION, also for a log in memory, which no node could read
 * @example
 * ```ts
 * import { createPublisher } from 'fastify-sse-manager'
 * import { redisStreamsBroker } from 'fastify-sse-manager/redis'
 *
 * const publisher = createPublisher({ broker: redisStreamsBroker({ client: 'redis://127.0.0.1:6379' }) })
 * await publisher.broadcastData('invoice', { id: '7', paid: true }, { userIds: ['ada'] })
 * await publisher.close()
 * ```
 */
export function createPublisher<C extends AnyCatalogue = RegisteredCatalogue> (options: PublisherOptions, logger: Log = warnings): SSEPublisher<C> {
  return new SSEPublisher<C>(options, logger)
}
