import { Type, type Static, type TSchema } from '@sinclair/typebox'
import { TypeCompiler, type TypeCheck } from '@sinclair/typebox/compiler'
import type { SSEConnection } from '../connections/connection.js'
import type { CloseReason } from '../connections/close-reason.js'
import type { DisconnectedUsers } from '../access/disconnected-users.js'
import type { Registry } from '../subscriptions/registry.js'
import type { Authorization } from '../subscriptions/authorization.js'
import type { ConnectionList } from './connection-list.js'
import { ConnectionQuerySchema, mergePages, NodePageSchema } from './connection-page.js'
import { NodeDetailsSchema, type NodeInspection } from './node-inspection.js'

/**
 * The effect of an operation.
 * - `ask`: it changes nothing, and can be repeated.
 * - `change`: it changes the subscriptions of a connection. It runs once, in order with events published before and after it.
 * - `revoke`: it revokes rights. As `change`, and logged: a node that was disconnected runs it before it delivers later events.
 */
type Effect = 'ask' | 'change' | 'revoke'

/**
 * An operation that any node can request from all nodes. `run` applies it to the connections of one node; null means that the node does
 * not have the connection. Arguments and results are JSON, and are validated by the node that receives them.
 */
export interface Command<A extends unknown[] = unknown[], R = unknown> {
  readonly effect: Effect
  readonly args: TypeCheck<TSchema>
  readonly result: TypeCheck<TSchema>
  run (...args: A): R | null | Promise<R | null>
  /** Combines the results of two nodes. Null: at most one node has the connection, and its result counts. */
  readonly merge: ((one: R, other: R) => R) | null
}

/** Maximum number of users that one node lists. */
const MAX_NAMED_USERS = 1_000

const Text = Type.String()
const Count = Type.Integer({ minimum: 0 })

const PresenceSchema = Type.Object({
  connections: Count,
  anonymous: Count,
  users: Type.Array(Type.Object({ userId: Text, connections: Count })),
  complete: Type.Boolean()
})

/** The holders of a topic or pattern, returned by `presence()`. */
export interface Presence {
  /** Number of streams that hold it. */
  connections: number
  /** Number of these streams without an authenticated user. */
  anonymous: number
  /**
   * Each user once, with the number of its streams. A node lists at most 1,000 users. In a topic of `presenceEvents`, users who may
   * return unannounced are included, so that the list agrees with `sse:join` and `sse:leave`. 0 connections: the user has no
   * stream now. Users of a node that has not answered count as one connection for each node.
   */
  users: {
    /** User id. */
    userId: string
    /** Number of streams of the user. */
    connections: number
  }[]
  /** Whether every node has answered, and has listed all its users. */
  complete: boolean
}
const add = (one: number, other: number) => one + other

/** Returns the operations that nodes run for each other. @internal */
export function createCommands (registry: Registry<SSEConnection>, subscriptions: Authorization<SSEConnection>, disconnections: DisconnectedUsers, connections: ConnectionList, inspection: NodeInspection) {
  return {
    closeConnection: ofOne('revoke', [Text, Text], Type.Literal(true), (clientId, reason) => {
      const connection = registry.client(clientId)
      connection?.close(reason)
      return connection === undefined ? null : true
    }),

    disconnectUser: ofAll('revoke', [Text, Text], Count, (userId, reason) => {
      disconnections.add(userId)
      const connections = registry.user(userId)
      for (const connection of connections) connection.close(reason)
      return connections.length
    }, add),

    addSubscription: ofOne('change', [Text, Text], Type.Literal(true), (clientId, subscription) => subscriptions.add(clientId, subscription)),

    removeSubscription: ofOne('change', [Text, Text], Type.Boolean(), (clientId, subscription) => subscriptions.remove(clientId, subscription)),

    revokeSubscription: ofAll('revoke', [Text, Text, Text], Count, (userId, subscription, reason) => subscriptions.revoke(userId, subscription, reason), add),

    reauthorize: ofAll('revoke', [Text, Text], Count, (userId, reason) => subscriptions.reauthorize(userId, reason), add),

    presence: ofAll('ask', [Text], PresenceSchema, subscription => holdersOf(registry.subscription(subscription)), mergePresence),

    connections: ofAll('ask', [ConnectionQuerySchema], NodePageSchema, query => connections.page(query), mergePages),

    details: ofAll('ask', [], Type.Array(NodeDetailsSchema), async () => [await inspection.read()], (one, other) => [...one, ...other])
  }
}

/**
 * Handles that this node may have missed a command. Closes the streams of all users, who reconnect with their current rights, and makes
 * pending authorizations run again. Anonymous streams stay open: a command cannot permanently revoke a right of an anonymous client.
 * @internal
 */
export function endUncertain (registry: Registry<SSEConnection>, subscriptions: Authorization<SSEConnection>, disconnections: DisconnectedUsers): void {
  disconnections.miss()
  subscriptions.disturb(() => true)
  for (const connection of [...registry.all()]) {
    if (connection.userId === null) continue
    // Without `hold`, `close` would send the events of this turn, which may have been published after a right was revoked.
    connection.hold()
    connection.close('rights-unknown' satisfies CloseReason)
  }
}

/** The operations by name. @internal */
export type Commands = ReturnType<typeof createCommands>
/** The arguments of an operation. @internal */
export type ArgumentsOf<N extends keyof Commands> = Parameters<Commands[N]['run']>
/** The result of an operation. @internal */
export type ResultOf<N extends keyof Commands> = NonNullable<Awaited<ReturnType<Commands[N]['run']>>>

type Values<T extends TSchema[]> = { [I in keyof T]: Static<T[I]> }

/** Defines an operation on a connection, which at most one node has. */
function ofOne<A extends TSchema[], R extends TSchema> (effect: Effect, args: [...A], result: R, run: (...args: Values<A>) => Static<R> | null | Promise<Static<R> | null>): Command<Values<A>, Static<R>> {
  return { effect, args: TypeCompiler.Compile(Type.Tuple(args)), result: TypeCompiler.Compile(result), run, merge: null }
}

/** Defines an operation that every node runs. */
function ofAll<A extends TSchema[], R extends TSchema> (effect: Effect, args: [...A], result: R, run: (...args: Values<A>) => Static<R> | Promise<Static<R>>, merge: (one: Static<R>, other: Static<R>) => Static<R>): Command<Values<A>, Static<R>> {
  return { effect, args: TypeCompiler.Compile(Type.Tuple(args)), result: TypeCompiler.Compile(result), run, merge }
}

function holdersOf (connections: readonly SSEConnection[]): Presence {
  const perUser = new Map<string, number>()
  let anonymous = 0
  for (const { userId } of connections) {
    if (userId === null) anonymous++
    else perUser.set(userId, (perUser.get(userId) ?? 0) + 1)
  }
  const users = Array.from(perUser, ([userId, connections]) => ({ userId, connections }))
  return { connections: connections.length, anonymous, users: users.slice(0, MAX_NAMED_USERS), complete: users.length <= MAX_NAMED_USERS }
}

/**
 * Adds announced users that no node has listed, with the number of nodes that hold them: a node has not answered, or the user has
 * returned since its node answered. @internal
 */
export function withAnnounced ({ users, complete, ...counts }: Presence, announced: ReadonlyMap<string, number>): Presence {
  const known = new Set(users.map(({ userId }) => userId))
  const missing = Array.from(announced, ([userId, connections]) => ({ userId, connections })).filter(({ userId }) => !known.has(userId))
  return { ...counts, users: users.concat(missing.slice(0, MAX_NAMED_USERS)), complete: complete && missing.length <= MAX_NAMED_USERS }
}

function mergePresence (one: Presence, other: Presence): Presence {
  const perUser = new Map(one.users.map(({ userId, connections }) => [userId, connections]))
  for (const { userId, connections } of other.users) perUser.set(userId, (perUser.get(userId) ?? 0) + connections)
  return {
    connections: one.connections + other.connections,
    anonymous: one.anonymous + other.anonymous,
    users: Array.from(perUser, ([userId, connections]) => ({ userId, connections })),
    complete: one.complete && other.complete
  }
}
