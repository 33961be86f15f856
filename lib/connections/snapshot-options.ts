import { Type } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import type { EventInput } from '../events/event-input.js'
import { durationMs, resolve } from '../util/option-schema.js'
import type { SSEConnection } from './connection.js'
import type { SnapshotReason, SnapshotSource } from './snapshot-loads.js'

/** The state of a client: an event, several events, or null if there is no state to send. */
export type SnapshotResult = EventInput | Iterable<EventInput> | AsyncIterable<EventInput> | null

/** The argument of `load`. */
export interface SnapshotQuestion {
  /** The connection that receives the state. */
  readonly connection: SSEConnection
  /** The topics and patterns to load: all that the connection holds, or those that were added. */
  readonly subscriptions: readonly string[]
  /** Why the state is loaded. */
  readonly reason: SnapshotReason
  /** Aborts when the result is no longer needed: the client has disconnected, or `timeoutMs` has passed. */
  readonly signal: AbortSignal
}

/** The argument of `load` of a snapshot with a key. It has no connection, so that the state cannot depend on one of the clients. */
export interface SharedSnapshotQuestion {
  /** The option `key`. */
  readonly key: string
  /** Aborts when no client waits for the result, or `timeoutMs` has passed. */
  readonly signal: AbortSignal
}

interface SnapshotLimits {
  /** Time limit of one load in milliseconds, and of the wait for its start: 1 to 600,000. When it is exceeded, the stream ends. Default 10,000. */
  timeoutMs?: number | undefined
  /** Maximum number of loads that run on this node at the same time, for all clients and routes: 1 to 10,000. Further loads wait. Default 16. */
  maxConcurrent?: number | undefined
}

/** A snapshot that is loaded for each connection. */
export interface ConnectionSnapshot extends SnapshotLimits {
  /** Returns the current state, or a promise of it. If it throws or rejects, the stream ends with `snapshot-error`. */
  load (question: SnapshotQuestion): SnapshotResult | Promise<SnapshotResult>
  /** Absent: each connection has its own load. */
  key?: undefined
}

/** A snapshot that is loaded once for all connections that need it at the same time. */
export interface SharedSnapshot extends SnapshotLimits {
  /** Returns the current state, or a promise of it. If it throws or rejects, the streams end with `snapshot-error`. */
  load (question: SharedSnapshotQuestion): SnapshotResult | Promise<SnapshotResult>
  /**
   * Clients with the same key share a load, on all routes of this node: 1 to 256 characters. It must name what is loaded and everything
   * that the state depends on, such as the tenant: `orders:acme`.
   */
  key: string
}

/** The option `snapshot`: the state that a client receives before the events that change it. */
export type SnapshotOptions = ConnectionSnapshot | SharedSnapshot

const SnapshotSchema = Type.Object({
  load: Type.Unsafe<SnapshotSource['load']>(Type.Function([], Type.Unknown(), { description: 'a function that returns the current state as an event, an iterable of events, or null' })),
  key: Type.Optional(Type.String({ minLength: 1, maxLength: 256, description: 'clients with the same key share a load' })),
  timeoutMs: durationMs('time limit of one load in milliseconds', 10_000, 1, 600_000),
  maxConcurrent: Type.Integer({ minimum: 1, maximum: 10_000, default: 16, description: 'maximum number of loads that run on this node at the same time' })
}, { additionalProperties: false })

const compiled = TypeCompiler.Compile(SnapshotSchema)

/**
 * Validates the option `snapshot` and fills in its defaults. Returns null if it is absent.
 * @throws SSE_ERR_INVALID_OPTION
 */
export function resolveSnapshot (given: unknown): SnapshotSource | null {
  return given === undefined ? null : resolve(SnapshotSchema, compiled, given, { prefix: 'snapshot.' })
}
