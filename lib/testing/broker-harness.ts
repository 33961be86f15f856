import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { EventPriority } from '../events/event-rules.js'
import type { Message, OutgoingMessage } from '../events/message.js'
import type { Broker, GapReason, History, Page, Published, PublishingLog } from '../log/broker.js'

// Helpers of the broker contract: open brokers whose reports are recorded.

/** The default history of the tests. */
export const HISTORY: History = { maxEvents: 100, maxAgeMs: 60_000, maxBytes: 1 << 20 }
/** Deadline of each wait in milliseconds. It is long, because machines that run tests can be busy. */
export const DEADLINE_MS = 15_000

/** A gap that a broker has reported, see `Sink.gap`. */
export interface ReportedGap {
  readonly reason: GapReason
  readonly commandsKept: boolean | undefined
}

/** An open broker whose reports are recorded. */
export class ContractNode {
  readonly broker: Broker
  /** Delivered messages, in order. */
  readonly delivered: Message[] = []
  /** Reported gaps, in order. */
  readonly gaps: ReportedGap[] = []
  /** Reported states, in order, without repetitions. */
  readonly states: string[] = []
  /** Called inside each delivery; null for no call. */
  onDeliver: ((message: Message) => void) | null = null
  #inside = false

  constructor (broker: Broker) {
    this.broker = broker
  }

  async open (history: History): Promise<void> {
    await this.broker.open({
      deliver: message => {
        assert.equal(this.#inside, false, 'deliver is not re-entered')
        assert.ok(this.broker.position >= message.seq, 'the position includes the message that is being delivered')
        this.#inside = true
        const count = this.delivered.push(message)
        this.onDeliver?.(message)
        this.#inside = false
        return count
      },
      gap: (reason, _error, commandsKept) => { this.gaps.push({ reason, commandsKept }) },
      state: state => this.#tell(state)
    }, history)
  }

  /** Opens the broker for publishing only. Resolves with null if the broker cannot. */
  async openForPublishing (history: History): Promise<PublishingLog | null> {
    return await this.broker.openForPublishing?.({ state: state => this.#tell(state) }, history) ?? null
  }

  #tell (state: string): void {
    if (this.states.at(-1) !== state) this.states.push(state)
  }

  async publish (data: string, more: Partial<OutgoingMessage> = {}): Promise<Published> {
    return await this.broker.publish(message(data, more))
  }

  /** Reads the page of NORMAL messages that follow `after`. */
  read (after: number, epoch = this.broker.epoch): Promise<Page> {
    return this.broker.read({ epoch, after, priority: EventPriority.NORMAL, limit: 10 })
  }

  /** Data of the delivered messages, in order. */
  get texts (): string[] {
    return texts(this.delivered)
  }

  /** Data of the delivered messages that `flood` has published on the channel `node`, sorted. Duplicates are included. */
  get told (): string[] {
    return this.texts.filter(text => text.startsWith('told ')).sort()
  }

  /** Waits until this number of messages of `flood` on the channel `node` is delivered. */
  hasTold (count: number): Promise<void> {
    return within(() => this.told.length >= count, () => `${count} messages between nodes are delivered, there are ${this.told.length}`)
  }

  /** Waits until this number of messages is delivered. */
  has (count: number): Promise<void> {
    return within(() => this.delivered.length >= count, () => `${count} messages are delivered, there are ${this.delivered.length}`)
  }

  /** Waits until this state is the last one that the broker has reported. */
  isIn (state: 'up' | 'down'): Promise<void> {
    return within(() => this.states.at(-1) === state, () => `the broker reports ${state}, it has reported ${this.states}`)
  }
}

/** A process that only publishes, and the log that it has opened. */
export interface ContractPublisher {
  readonly node: ContractNode
  readonly log: PublishingLog
}

/**
 * Runs a test on its own log. `join` opens another node on this log. `joinAsPublisher` opens it for publishing only, and resolves with null
 * if the broker cannot.
 */
export type Check = (what: string, run: (join: () => Promise<ContractNode>, joinAsPublisher: () => Promise<ContractPublisher | null>) => Promise<void>, history?: History) => unknown

/** Breaks the connection between a node and its store, for example with `slowRedis()`. Each method can return a promise. */
export interface StoreFaults {
  /** Disconnects a node from the store until `heal()`. */
  cut (node: number): unknown
  /** Delays everything that the store sends to a node, until `heal()`. */
  hold (node: number): unknown
  /** Ends `cut()` and `hold()`: the node reaches the store again, and receives what was delayed. */
  heal (node: number): unknown
}

/** Waits until the condition is true. Rejects after `DEADLINE_MS` with the text of `what`. */
export async function within (condition: () => boolean | Promise<boolean>, what: () => string): Promise<void> {
  const deadline = Date.now() + DEADLINE_MS
  while (!await condition()) {
    assert.ok(Date.now() < deadline, what())
    await sleep(5)
  }
}

/** Returns a message with default properties. */
export function message (data: string, more: Partial<OutgoingMessage> = {}): OutgoingMessage {
  return { event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false, ...more }
}

/** Returns the data of messages. */
export function texts (messages: readonly Message[]): string[] {
  return messages.map(({ data }) => data)
}

/** Returns the numbers from 0 to `count - 1`, as strings. */
export function numbers (count: number): string[] {
  return Array.from({ length: count }, (_, i) => String(i))
}

/**
 * Publishes logged and ephemeral messages on the channel `node` among many ephemeral events. Resolves with the data of the messages,
 * sorted.
 */
export async function flood (node: ContractNode): Promise<string[]> {
  const noise = 'x'.repeat(500)
  const told: string[] = []
  for (let i = 0; i < 12; i++) {
    // An ephemeral event can be lost, and its publish can be rejected.
    for (let n = 0; n < 100; n++) node.publish(noise, { ephemeral: true }).catch(() => {})
    told.push(`told ${i}`)
    await node.publish(told.at(-1)!, { channel: 'node', ephemeral: i % 2 === 0 })
  }
  return told.sort()
}
