import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { EventPriority } from '../events/event-rules.js'
import type { Message, OutgoingMessage } from '../events/message.js'
import type { Broker, GapReason, History, Page, Published } from '../log/broker.js'

// What the checks of the broker contract run on: opened brokers that remember what they have reported.

export const HISTORY: History = { maxEvents: 100, maxAgeMs: 60_000, maxBytes: 1 << 20 }
/** Within this time a broker does what it promises. Long, as machines that run tests are busy. */
export const DEADLINE_MS = 15_000

/** A gap as a broker has reported it. */
export interface ReportedGap {
  readonly reason: GapReason
  readonly commandsKept: boolean | undefined
}

/** An open broker, and all that it has reported. */
export class ContractNode {
  readonly broker: Broker
  readonly delivered: Message[] = []
  readonly gaps: ReportedGap[] = []
  readonly states: string[] = []
  /** Called inside each delivery. */
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
      state: state => { if (this.states.at(-1) !== state) this.states.push(state) }
    }, history)
  }

  async publish (data: string, more: Partial<OutgoingMessage> = {}): Promise<Published> {
    return await this.broker.publish(message(data, more))
  }

  /** The page of NORMAL messages after `after`. */
  read (after: number, epoch = this.broker.epoch): Promise<Page> {
    return this.broker.read({ epoch, after, priority: EventPriority.NORMAL, limit: 10 })
  }

  get texts (): string[] {
    return texts(this.delivered)
  }

  /** Messages of `flood` that were received from the channel of nodes, sorted, each as often as it was delivered. */
  get told (): string[] {
    return this.texts.filter(text => text.startsWith('told ')).sort()
  }

  hasTold (count: number): Promise<void> {
    return within(() => this.told.length >= count, () => `${count} messages between nodes are delivered, there are ${this.told.length}`)
  }

  has (count: number): Promise<void> {
    return within(() => this.delivered.length >= count, () => `${count} messages are delivered, there are ${this.delivered.length}`)
  }

  /** Waits until the broker has reported this state last. */
  isIn (state: 'up' | 'down'): Promise<void> {
    return within(() => this.states.at(-1) === state, () => `the broker reports ${state}, it has reported ${this.states}`)
  }
}

/** Runs a test on a log of its own; `join` opens one more node on it. */
export type Check = (what: string, run: (join: () => Promise<ContractNode>) => Promise<void>, history?: History) => unknown

/** Breaks the connection between a node and its store, for example by `slowRedis()`. Each may return a promise. */
export interface StoreFaults {
  /** From now on this node cannot reach the store. */
  cut (node: number): unknown
  /** From now on what the store sends to this node waits. */
  hold (node: number): unknown
  /** The node reaches the store again, and receives what has waited. */
  heal (node: number): unknown
}

/** Waits until the condition holds; fails after `DEADLINE_MS`. */
export async function within (condition: () => boolean | Promise<boolean>, what: () => string): Promise<void> {
  const deadline = Date.now() + DEADLINE_MS
  while (!await condition()) {
    assert.ok(Date.now() < deadline, what())
    await sleep(5)
  }
}

export function message (data: string, more: Partial<OutgoingMessage> = {}): OutgoingMessage {
  return { event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false, ...more }
}

export function texts (messages: readonly Message[]): string[] {
  return messages.map(({ data }) => data)
}

/** `0` up to, and without, `count`. */
export function numbers (count: number): string[] {
  return Array.from({ length: count }, (_, i) => String(i))
}

/** Publishes messages between nodes, logged and ephemeral ones, in a flood of ephemeral events. Resolves with their texts, sorted. */
export async function flood (node: ContractNode): Promise<string[]> {
  const noise = 'x'.repeat(500)
  const told: string[] = []
  for (let i = 0; i < 12; i++) {
    // It may be lost, and its publish rejected.
    for (let n = 0; n < 100; n++) node.publish(noise, { ephemeral: true }).catch(() => {})
    told.push(`told ${i}`)
    await node.publish(told.at(-1)!, { channel: 'node', ephemeral: i % 2 === 0 })
  }
  return told.sort()
}
