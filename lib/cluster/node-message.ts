import { Type, type Static, type TSchema } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'

// Messages between nodes, which the shared log carries under the reserved name `NODE_EVENT`. A message can come from another version of
// this package, so unknown messages are ignored. New properties must be optional: otherwise messages of older versions would be invalid.

/** Longest heartbeat interval in milliseconds. */
export const MAX_BEAT_MS = 60_000

const Id = Type.String({ minLength: 1, maxLength: 64 })
const Count = Type.Integer({ minimum: 0 })

/** The state of a node, which it reports to the others. */
const ReportSchema = Type.Object({
  nodeId: Id,
  name: Type.Union([Type.String(), Type.Null()]),
  startedAt: Type.Number(),
  connections: Count,
  users: Count,
  subscriptions: Count,
  status: Type.Union([Type.Literal('up'), Type.Literal('degraded')]),
  reason: Type.Optional(Type.String()),
  /** Heartbeat interval of the node in milliseconds. */
  everyMs: Type.Integer({ minimum: 1, maximum: MAX_BEAT_MS }),
  /** Number of its entries in the presence list; null if it has no list. */
  present: Type.Union([Count, Type.Null()]),
  /** The previous epoch, the newest command that was read in it, and the current epoch. */
  left: Type.Optional(Type.Object({ epoch: Type.String(), command: Count, into: Type.Optional(Type.String()) }))
})
/** The state of a node, which it reports to the others. */
export type Report = Static<typeof ReportSchema>

const message = <K extends string, P extends Record<string, TSchema>>(kind: K, properties: P) => Type.Object({ kind: Type.Literal(kind), from: Id, ...properties })

const Schema = Type.Union([
  /** Heartbeats. A `hello` also requests the report and the presence list of every other node. */
  message('hello', { report: ReportSchema }),
  message('beat', { report: ReportSchema }),
  message('bye', {}),
  /** A command, which every node answers. `to`: it is repeated, for nodes that have not answered. */
  message('command', { id: Count, operation: Type.String(), args: Type.Array(Type.Unknown()), to: Type.Optional(Type.Array(Id)) }),
  message('answer', { to: Id, id: Count, value: Type.Optional(Type.Unknown()), error: Type.Optional(Type.Object({ code: Type.String(), message: Type.String() })) }),
  /** Changes: topic, user id, and whether the user is now present on the sending node. */
  message('presence', { changes: Type.Array(Type.Tuple([Type.String(), Type.String(), Type.Boolean()])) }),
  /** The full list of the sending node: topics and user ids. `more`: another part follows. */
  message('present', { first: Type.Boolean(), more: Type.Boolean(), entries: Type.Array(Type.Tuple([Type.String(), Type.String()])) }),
  /** Topics and user ids of users who have left and may return unannounced, and for how many milliseconds; for nodes that have started since. */
  message('leaving', { entries: Type.Array(Type.Tuple([Type.String(), Type.String(), Type.Number()])) })
])
/** A message between nodes. */
export type NodeMessage = Static<typeof Schema>
/** A message of one kind. */
export type MessageOf<K extends NodeMessage['kind']> = Extract<NodeMessage, { kind: K }>
/** A message without its sender. */
export type Saying = NodeMessage extends infer M ? M extends NodeMessage ? Omit<M, 'from'> : never : never

const compiled = TypeCompiler.Compile(Schema)

/** Returns the text of a message. */
export function encodeNodeMessage (message: NodeMessage): string {
  return JSON.stringify(message)
}

/** Parses a message. Returns null for any other text, such as a message of another version. */
export function decodeNodeMessage (text: string): NodeMessage | null {
  let message: unknown
  try {
    message = JSON.parse(text)
  } catch {
    return null
  }
  return compiled.Check(message) ? message : null
}
