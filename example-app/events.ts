import { Type, type Static } from '@sinclair/typebox'
import { defineEvents } from '../lib/index.js'

// All events that the board sends. Samples, log lines and messages have `seq`, a sequence number without gaps. The machine, the log, and
// each chat room and conversation have their own sequence. `at` is the time of the server. With both, the page verifies that no event was
// lost during a disconnect.

const Seq = Type.Integer({ minimum: 1 })
const At = Type.Integer({ minimum: 0 })
const Text = Type.String({ minLength: 1, maxLength: 2_000 })

const SampleSchema = Type.Object({
  seq: Seq,
  at: At,
  cpuPercent: Type.Number({ minimum: 0, maximum: 100 }),
  cores: Type.Integer({ minimum: 1 }),
  load: Type.Tuple([Type.Number(), Type.Number(), Type.Number()]),
  memoryUsedBytes: Type.Number(),
  memoryTotalBytes: Type.Number(),
  processBytes: Type.Number(),
  delayP50Ms: Type.Number(),
  delayP99Ms: Type.Number()
})
export type Sample = Static<typeof SampleSchema>

const RoomMessageSchema = Type.Object({ room: Type.String(), seq: Seq, at: At, from: Type.String(), text: Text })
export type RoomMessage = Static<typeof RoomMessageSchema>

const PrivateMessageSchema = Type.Object({ conversation: Type.String(), seq: Seq, at: At, from: Type.String(), to: Type.String(), text: Text })
export type PrivateMessage = Static<typeof PrivateMessageSchema>

const LogLinesSchema = Type.Object({ seq: Seq, at: At, lines: Type.Array(Type.String()), skippedBytes: Type.Integer({ minimum: 0 }) })
export type LogLines = Static<typeof LogLinesSchema>

// What a page shows of its subscriptions before the events that change it. Each event that follows can be contained in it: `seq` says so.
const StateSchema = Type.Object({
  samples: Type.Array(SampleSchema),
  /** The last lines, and the number of the newest event in them; null for a page that does not show the log. */
  log: Type.Union([Type.Object({ seq: Type.Integer({ minimum: 0 }), lines: Type.Array(Type.String()) }), Type.Null()]),
  messages: Type.Array(Type.Union([RoomMessageSchema, PrivateMessageSchema]))
})
export type State = Static<typeof StateSchema>

const ConnectionRowSchema = Type.Object({
  clientId: Type.String(),
  userId: Type.String(),
  ip: Type.String(),
  agent: Type.String(),
  connectedAt: At,
  subscriptions: Type.Array(Type.String()),
  sentEvents: Type.Integer({ minimum: 0 }),
  queuedBytes: Type.Integer({ minimum: 0 })
})
export type ConnectionRow = Static<typeof ConnectionRowSchema>

export const events = defineEvents({
  events: {
    chat_message: RoomMessageSchema,
    private_message: PrivateMessageSchema
  },
  resources: {
    welcome: Type.Object({ clientId: Type.String(), run: Type.String(), at: At, topics: Type.Array(Type.String()) }),
    state: StateSchema,
    machine: SampleSchema,
    log: LogLinesSchema,
    presence: Type.Object({ users: Type.Array(Type.String()) }),
    connections: Type.Object({ rows: Type.Array(ConnectionRowSchema), total: Type.Integer() })
  }
})
