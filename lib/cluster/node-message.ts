import { Type, type Static, type TSchema } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'

// What nodes tell each other, through the log that they share: messages of one reserved name, `NODE_EVENT`. A message is input
// from another process, which may be of another version: what is not understood is left alone. A new property is therefore
// optional: without it, the whole message of a node of an older version would not be understood.

/** The longest interval at which a node may say that it lives, in milliseconds. */
export const MAX_BEAT_MS = 60_000

const Id = Type.String({ minLength: 1, maxLength: 64 })
const Count = Type.Integer({ minimum: 0 })

/** What a node says of itself. */
const ReportSchema = Type.Object({
  nodeId: Id,
  name: Type.Union([Type.String(), Type.Null()]),
  startedAt: Type.Number(),
  connections: Count,
  users: Count,
  subscriptions: Count,
  status: Type.Union([Type.Literal('up'), Type.Literal('degraded')]),
  reason: Type.Optional(Type.String()),
  /** How often it says so, in milliseconds. */
  everyMs: Type.Integer({ minimum: 1, maximum: MAX_BEAT_MS }),
  /** Entries of the presence list that are this node's; null when it keeps none. */
  present: Type.Union([Count, Type.Null()]),
  /** The epoch that it read before this one, the newest command that it read there, and the epoch that it reads now. */
  left: Type.Optional(Type.Object({ epoch: Type.String(), command: Count, into: Type.Optional(Type.String()) }))
})
export type Report = Static<typeof ReportSchema>

const message = <K extends string, P extends Record<string, TSchema>>(kind: K, properties: P) => Type.Object({ kind: Type.Literal(kind), from: Id, ...properties })

const Schema = Type.Union([
  /** It lives. `hello`: and wants to know who else does. */
  message('hello', { report: ReportSchema }),
  message('beat', { report: ReportSchema }),
  message('bye', {}),
  /** All nodes are asked to do something; each answers. `to`: asked again, those that have not answered. */
  message('command', { id: Count, operation: Type.String(), args: Type.Array(Type.Unknown()), to: Type.Optional(Type.Array(Id)) }),
  message('answer', { to: Id, id: Count, value: Type.Optional(Type.Unknown()), error: Type.Optional(Type.Object({ code: Type.String(), message: Type.String() })) }),
  /** Topic, user, and whether that user is there now, on the node that tells. */
  message('presence', { changes: Type.Array(Type.Tuple([Type.String(), Type.String(), Type.Boolean()])) }),
  /** All topics and users of the node that tells; `more` follows. */
  message('present', { first: Type.Boolean(), more: Type.Boolean(), entries: Type.Array(Type.Tuple([Type.String(), Type.String()])) })
])
export type NodeMessage = Static<typeof Schema>
export type MessageOf<K extends NodeMessage['kind']> = Extract<NodeMessage, { kind: K }>
/** A message before its sender is put on it. */
export type Saying = NodeMessage extends infer M ? M extends NodeMessage ? Omit<M, 'from'> : never : never

const compiled = TypeCompiler.Compile(Schema)

export function encodeNodeMessage (message: NodeMessage): string {
  return JSON.stringify(message)
}

/** Null for what is no message between nodes of this version. */
export function decodeNodeMessage (text: string): NodeMessage | null {
  let message: unknown
  try {
    message = JSON.parse(text)
  } catch {
    return null
  }
  return compiled.Check(message) ? message : null
}
