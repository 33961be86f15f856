import { channel } from 'node:diagnostics_channel'
import type { EventPriority } from '../events/event-rules.js'
import type { GapReason } from '../events/control.js'

/** How a stream began, see `Diagnostics`. */
export type StartResult = 'fresh' | 'resumed' | 'gap'
/** Which bound an ephemeral event exceeded: `outboxBytes` of its client, or `maxQueuedBytes` of the node. */
export type DropReason = 'outbox' | 'memory'

/** Part of each payload. */
interface OfNode {
  /** The node, as `app.sse.nodeId`. Null for a publisher of `createPublisher()`. */
  readonly nodeId: string | null
}

/** Part of each payload that concerns one stream. */
interface OfStream extends OfNode {
  /** The random id of the connection, as `connection.clientId`. */
  readonly clientId: string
}

/**
 * The payloads of the diagnostics channels, by the name of the channel after `fastify-sse-manager:`. They contain no data of events, and no
 * user id, topic or address. Durations are in milliseconds.
 * @example
 * ```ts
 * import { subscribe } from 'node:diagnostics_channel'
 * import type { Diagnostics } from 'fastify-sse-manager'
 *
 * subscribe('fastify-sse-manager:gap', message => {
 *   const { nodeId, clientId, reason } = message as Diagnostics['gap']
 *   app.log.warn({ nodeId, clientId, reason }, 'A client has missed events')
 * })
 * ```
 */
export interface Diagnostics {
  /** The headers of a stream were sent. */
  readonly open: OfStream & {
    /** Whether broadcasts reach the stream; false for a stream of `reply.sse(source)`. */
    readonly managed: boolean
    /** Time since the request arrived at this package, with authentication and authorization. */
    readonly durationMs: number
  }
  /** A stream has ended. Without an `open` before, its client disconnected before the headers were sent, or the request was a HEAD request. */
  readonly close: OfStream & {
    /** As in `open`. */
    readonly managed: boolean
    /** The close reason. */
    readonly reason: string
    /** Time since the request arrived at this package. */
    readonly durationMs: number
    /** Number of events written. */
    readonly sentEvents: number
    /** Number of ephemeral events that were dropped because the client was too slow. */
    readonly droppedEvents: number
  }
  /** A request was refused before its headers were sent. */
  readonly refuse: OfNode & {
    /** Code of the error; `other` for an error of other code. */
    readonly code: string
  }
  /** It is known how a managed stream, or the stream of a run, begins. */
  readonly resume: OfStream & {
    /** `fresh`: the client has no cursor. `resumed`: it has missed nothing. `gap`: it has missed events. */
    readonly result: StartResult
  }
  /** A client has missed events that cannot be replayed; it receives `sse:gap`. */
  readonly gap: OfStream & {
    /** Why. */
    readonly reason: GapReason
  }
  /** A connection has read missed events from the log, because its client has resumed or was too slow. */
  readonly replay: OfStream & {
    /** Number of events. */
    readonly events: number
    /** Their size in bytes, as they are written. */
    readonly bytes: number
    /** Time since the first read. */
    readonly durationMs: number
    /** `complete`: the client is live again. `gap`: it has missed events. `closed`: the stream ended before. */
    readonly result: 'complete' | 'gap' | 'closed'
  }
  /** The queue of a slow client is full: logged events are read from the log later. */
  readonly lag: OfStream
  /** An ephemeral event was dropped, because its client was too slow. */
  readonly drop: OfStream & {
    /** The bound that was reached. */
    readonly reason: DropReason
  }
  /** An event was published by this node, or could not be. Events that are rejected as invalid are not reported. */
  readonly publish: OfNode & {
    /** Name of the event. */
    readonly event: string
    /** Whether the event is not logged. */
    readonly ephemeral: boolean
    /** Priority of the event. */
    readonly priority: EventPriority
    /** Number of connections of this node that received it. */
    readonly delivered: number
    /** Time until the log has answered and this node has delivered the event. */
    readonly durationMs: number
    /** Code of the error; null if the event was published. */
    readonly code: string | null
  }
  /** Events were written to the sockets of their clients: once per flush, for all events of it. */
  readonly deliver: OfNode & {
    /** Number of connections that were written to. */
    readonly connections: number
    /** Time from the arrival of the first event at this node to the last write. */
    readonly durationMs: number
  }
  /** A run was started on this node, or a run of this node has ended. */
  readonly run: OfNode & {
    /** `running` for the start, otherwise the end. */
    readonly status: 'running' | 'done' | 'failed' | 'stopped' | 'lost'
    /** Why it ended; absent for `running`, `done` and `lost`. */
    readonly reason?: string
    /** Number of its events. */
    readonly events: number
  }
  /** The event log has become reachable, or unreachable. */
  readonly health: OfNode & {
    /** As in `app.sse.health()`. */
    readonly status: 'up' | 'degraded'
  }
}

/** A channel of `node:diagnostics_channel` with the type of its payload. */
interface TypedChannel<T> {
  readonly hasSubscribers: boolean
  publish (payload: T): void
}

/** The names of the channels, without `fastify-sse-manager:`. */
export const CHANNEL_NAMES = ['open', 'close', 'refuse', 'resume', 'gap', 'replay', 'lag', 'drop', 'publish', 'deliver', 'run', 'health'] as const satisfies readonly (keyof Diagnostics)[]

/** Returns the full name of a channel. */
export function channelName (name: keyof Diagnostics): string {
  return `fastify-sse-manager:${name}`
}

/** The channels. Node keeps one object for each name, also if the package is loaded twice. */
export const channels = Object.fromEntries(CHANNEL_NAMES.map(name => [name, channel(channelName(name))])) as unknown as { readonly [N in keyof Diagnostics]: TypedChannel<Diagnostics[N]> }
