import { Type, type Static } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import type { EventPriority } from '../../events/event-rules.js'
import type { Message, OutgoingMessage } from '../../events/message.js'

/** An entry of a stream in Redis. */
export interface Entry {
  /** The message; null for an entry that this package did not write. */
  readonly message: Message | null
  /** See `Outgoing`. */
  readonly nonce: string
  /** Epoch in the id of the entry. */
  readonly epoch: number
  /** Time of logging by Redis's clock, in milliseconds since the Unix epoch; 0 for an entry that this package did not write. */
  readonly time: number
  /** Number of the entry among the logged messages, or among the ephemeral ones. */
  readonly number: number
  /** Newest number of the other kind at the time of logging. */
  readonly other: number
  /** Number of the newest command that was logged before the entry. */
  readonly command: number
  /** Time of logging of that command; 0 for no command, or an entry of an older version of this package. */
  readonly commandTime: number
}

const Ids = Type.Optional(Type.Array(Type.String()))
/** A message without its data. Another process wrote it, possibly of another version. An invalid one must not stop later messages. */
const Head = Type.Object({
  event: Type.String({ pattern: '^[^\\r\\n\\0]+$' }),
  priority: Type.Integer({ minimum: 0, maximum: 3 }),
  retry: Type.Optional(Type.Integer({ minimum: 100, maximum: 3_600_000 })),
  key: Type.Optional(Type.String()),
  target: Type.Object({ userIds: Ids, subscriptionIds: Ids, clientIds: Ids, exceptClientIds: Ids }),
  nonce: Type.String()
})
const head = TypeCompiler.Compile(Head)

/** Decodes an entry of the stream of logged or of ephemeral messages. */
export function decodeEntry (raw: unknown, ephemeral: boolean): Entry {
  const [id, fields] = raw as [unknown, unknown[]]
  const [epoch, number] = String(id).split('-').map(Number) as [number, number]
  const [t, time, b, , o, other, h, text, d, data, , command, , commandTime] = fields as string[]
  const ours = t === 't' && b === 'b' && o === 'o' && h === 'h' && d === 'd' && isCount(time!) && isCount(other!)
  const parsed = ours ? parse(text!) : null
  if (!head.Check(parsed)) return { epoch, number, message: null, nonce: '', time: 0, other: 0, command: 0, commandTime: 0 }
  return { epoch, number, message: messageOf(parsed, data!, ephemeral ? 0 : number), nonce: parsed.nonce, time: Number(time), other: Number(other), command: Number(command), commandTime: Number(commandTime ?? 0) }
}

/** Decodes an entry of the stream between nodes. Returns null for an entry that this package did not write. */
export function decodeNodeMessage (raw: unknown): Message | null {
  const [h, text, d, data] = (raw as [unknown, string[]])[1]
  const parsed = h === 'h' && d === 'd' ? parse(text!) : null
  return head.Check(parsed) ? messageOf(parsed, data!, 0) : null
}

/** Encodes a message without its data. */
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
