import { Type, type Static } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import type { EventPriority } from '../../events/event-rules.js'
import type { Message, OutgoingMessage } from '../../events/message.js'

/** A message as it stands in Redis. */
export interface Entry {
  /** Null when it is not of our making. */
  readonly message: Message | null
  /** See `Outgoing`. */
  readonly nonce: string
  readonly epoch: number
  /** When it was logged, by Redis's clock, in milliseconds; 0 when it is not of our making. */
  readonly time: number
  /** Its number among the logged, or among the ephemeral ones. */
  readonly number: number
  /** The newest number of the other kind when it was published. */
  readonly other: number
  /** The number of the newest command that was logged before it. */
  readonly command: number
  /** When that command was logged; 0 when there is none, or a node of an older version has not said it. */
  readonly commandTime: number
}

const Ids = Type.Optional(Type.Array(Type.String()))
/** All of a message but its data. Of another process, perhaps of another version: what cannot be delivered must not stop what comes after it. */
const Head = Type.Object({
  event: Type.String({ pattern: '^[^\\r\\n\\0]+$' }),
  priority: Type.Integer({ minimum: 0, maximum: 3 }),
  retry: Type.Optional(Type.Integer({ minimum: 100, maximum: 3_600_000 })),
  key: Type.Optional(Type.String()),
  target: Type.Object({ userIds: Ids, subscriptionIds: Ids, clientIds: Ids, exceptClientIds: Ids }),
  nonce: Type.String()
})
const head = TypeCompiler.Compile(Head)

/** An entry of the stream of logged or of ephemeral messages. */
export function decodeEntry (raw: unknown, ephemeral: boolean): Entry {
  const [id, fields] = raw as [unknown, unknown[]]
  const [epoch, number] = String(id).split('-').map(Number) as [number, number]
  const [t, time, b, , o, other, h, text, d, data, , command, , commandTime] = fields as string[]
  const ours = t === 't' && b === 'b' && o === 'o' && h === 'h' && d === 'd' && isCount(time!) && isCount(other!)
  const parsed = ours ? parse(text!) : null
  if (!head.Check(parsed)) return { epoch, number, message: null, nonce: '', time: 0, other: 0, command: 0, commandTime: 0 }
  return { epoch, number, message: messageOf(parsed, data!, ephemeral ? 0 : number), nonce: parsed.nonce, time: Number(time), other: Number(other), command: Number(command), commandTime: Number(commandTime ?? 0) }
}

/** An entry of the stream of nodes; null when it is not of our making. */
export function decodeNodeMessage (raw: unknown): Message | null {
  const [h, text, d, data] = (raw as [unknown, string[]])[1]
  const parsed = h === 'h' && d === 'd' ? parse(text!) : null
  return head.Check(parsed) ? messageOf(parsed, data!, 0) : null
}

/** What is written beside the data of a message. */
export function headOf ({ event, priority, retry, key, target }: OutgoingMessage, nonce: string): string {
  return JSON.stringify({ event, priority, retry, key, target, nonce })
}

function messageOf ({ event, priority, retry, key, target }: Static<typeof Head>, data: string, seq: number): Message {
  return { event, data, priority: priority as EventPriority, retry, key, target, ephemeral: seq === 0, seq }
}

function isCount (text: string): boolean {
  return /^\d{1,15}$/.test(text)
}

function parse (text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}
