import { Buffer } from 'node:buffer'
import { NODE_EVENT } from '../events/control.js'
import { EventPriority } from '../events/event-rules.js'
import type { Message } from '../events/message.js'
import type { Node } from '../node.js'

/** Number of positions of the log, from its end, that are looked at. */
const SPAN = 200
/** Maximum number of reads of one priority: a read can be empty before the end of the log. */
const MAX_READS = 20
/** Maximum number of ids of a target that are shown. */
const MAX_IDS = 10
/** Length to which the data of an event is cut. */
const MAX_DATA_LENGTH = 2_000

const LANES: readonly EventPriority[] = [EventPriority.LOW, EventPriority.NORMAL, EventPriority.HIGH, EventPriority.CRITICAL]

/** The ids of one kind that an event is addressed to. */
interface Ids {
  readonly first: readonly string[]
  readonly count: number
}

/** An event of the log, as the page shows it. */
export interface LoggedEvent {
  readonly seq: number
  readonly event: string
  readonly priority: EventPriority
  readonly key: string | null
  /** Size of the data in bytes. */
  readonly bytes: number
  /** The receivers by kind; empty for all connections. */
  readonly target: Readonly<Record<string, Ids>>
  /** Whether a function selects the receivers. */
  readonly filtered: boolean
  /** The data, cut; absent if payloads are hidden. */
  readonly data?: string
}

/** Returns the newest events of the log, the newest first, and the position of the log. */
export async function newestEvents ({ broker, eventLog }: Node, payloads: boolean): Promise<{ position: number, events: LoggedEvent[] }> {
  const { epoch, position } = eventLog
  const lanes = await Promise.all(LANES.map(async priority => await newestOf(broker, { epoch, position, priority })))
  const messages = lanes.flat().filter(({ event }) => event !== NODE_EVENT).sort((one, other) => other.seq - one.seq)
  return { position, events: messages.map(message => factsOf(message, payloads)) }
}

async function newestOf (broker: Node['broker'], { epoch, position, priority }: { epoch: string, position: number, priority: EventPriority }): Promise<Message[]> {
  // Half of a stretch whose beginning was trimmed is still kept, or a half of that.
  for (let span = Math.min(SPAN, position); span >= 1; span = Math.floor(span / 2)) {
    const messages: Message[] = []
    let after = position - span
    let trimmed = false
    for (let reads = 0; reads < MAX_READS && after < position && !trimmed; reads++) {
      const page = await broker.read({ epoch, after, priority, limit: SPAN })
      trimmed = page.gap !== undefined
      messages.push(...page.messages)
      after = page.next
    }
    if (!trimmed) return messages
  }
  return []
}

function factsOf ({ seq, event, data, priority, key, target }: Message, payloads: boolean): LoggedEvent {
  const ids: Record<string, Ids> = {}
  for (const kind of ['userIds', 'subscriptionIds', 'clientIds', 'exceptClientIds'] as const) {
    const list = target[kind]
    if (list !== undefined) ids[kind] = { first: list.slice(0, MAX_IDS), count: list.length }
  }
  return { seq, event, priority, key: key ?? null, bytes: Buffer.byteLength(data), target: ids, filtered: target.filter !== undefined, ...(payloads && { data: data.slice(0, MAX_DATA_LENGTH) }) }
}
