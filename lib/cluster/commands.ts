import { Type, type Static, type TSchema } from '@sinclair/typebox'
import { TypeCompiler, type TypeCheck } from '@sinclair/typebox/compiler'
import type { SSEConnection } from '../connections/connection.js'
import type { CloseReason } from '../connections/close-reason.js'
import type { DisconnectedUsers } from '../access/disconnected-users.js'
import type { Registry } from '../subscriptions/registry.js'
import type { Authorization } from '../subscriptions/authorization.js'

/**
 * What an operation does:
 * - `ask`: it changes nothing, and may be done again.
 * - `change`: it changes what a connection holds; done once, in the order of what was published before and after.
 * - `revoke`: it takes rights away; as above, and logged, so that a node that was away does it before it delivers what came after it.
 */
type Effect = 'ask' | 'change' | 'revoke'

/**
 * Something that any node can ask all nodes to do. What one does with its own connections is `run`; null is "not mine".
 * Arguments and results are data, and checked where they arrive.
 */
export interface Command<A extends unknown[] = unknown[], R = unknown> {
  readonly effect: Effect
  readonly args: TypeCheck<TSchema>
  readonly result: TypeCheck<TSchema>
  run (...args: A): R | null | Promise<R | null>
  /** How the answers of two nodes become one. Null: one node decides, and the first that does not say null has. */
  readonly merge: ((one: R, other: R) => R) | null
}

/** Users that one node names at most. */
const MAX_NAMED_USERS = 1_000

const Text = Type.String()
const Count = Type.Integer({ minimum: 0 })

const PresenceSchema = Type.Object({
  connections: Count,
  anonymous: Count,
  users: Type.Array(Type.Object({ userId: Text, connections: Count })),
  complete: Type.Boolean()
})

/** Who holds a subscription. */
export interface Presence {
  /** Streams that hold it. */
  connections: number
  /** Those among them that are nobody's. */
  anonymous: number
  /**
   * Each user once, with the number of streams; of one node the first 1,000. In a topic of `presenceEvents` also who has no stream
   * at the moment but may come back unannounced, with 0: these are the users that `sse:join` and `sse:leave` tell of.
   */
  users: { userId: string, connections: number }[]
  /** Whether every node has answered, and has named all its users. */
  complete: boolean
}
const add = (one: number, other: number) => one + other

/** The closed list of what nodes do for each other. An operation is its line here, and its name in the manager. @internal */
export function createCommands (registry: Registry<SSEConnection>, subscriptions: Authorization<SSEConnection>, disconnections: DisconnectedUsers) {
  return {
    closeConnection: ofOne('revoke', [Text, Text], Type.Literal(true), (clientId, reason) => {
      const connection = registry.client(clientId)
      connection?.close(reason)
      return connection === undefined ? null : true
    }),

    disconnectUser: ofAll('revoke', [Text, Text], Count, (userId, reason) => {
      disconnections.add(userId)
      const connections = [...registry.user(userId)]
      for (const connection of connections) connection.close(reason)
      return connections.length
    }, add),

    addSubscription: ofOne('change', [Text, Text], Type.Literal(true), (clientId, subscription) => subscriptions.add(clientId, subscription)),

    removeSubscription: ofOne('change', [Text, Text], Type.Boolean(), (clientId, subscription) => subscriptions.remove(clientId, subscription)),

    revokeSubscription: ofAll('revoke', [Text, Text, Text], Count, (userId, subscription, reason) => subscriptions.revoke(userId, subscription, reason), add),

    reauthorize: ofAll('revoke', [Text, Text], Count, (userId, reason) => subscriptions.reauthorize(userId, reason), add),

    presence: ofAll('ask', [Text], PresenceSchema, subscription => holdersOf(registry.subscription(subscription)), mergePresence)
  }
}

/**
 * This node may have missed a command. Streams that belong to a user end, and those on the way in are asked about again: they
 * come back with today's subscriptions. Commands name users, or take nothing from an anonymous client that it could not have again.
 * @internal
 */
export function endUncertain (registry: Registry<SSEConnection>, subscriptions: Authorization<SSEConnection>, disconnections: DisconnectedUsers): void {
  disconnections.miss()
  subscriptions.disturb(() => true)
  for (const connection of [...registry.all()]) {
    if (connection.userId === null) continue
    // Without it, `close` would send what was published in this turn, perhaps after the right was taken away.
    connection.hold()
    connection.close('rights-unknown' satisfies CloseReason)
  }
}

/** @internal */
export type Commands = ReturnType<typeof createCommands>
/** @internal */
export type ArgumentsOf<N extends keyof Commands> = Parameters<Commands[N]['run']>
/** @internal */
export type ResultOf<N extends keyof Commands> = NonNullable<Awaited<ReturnType<Commands[N]['run']>>>

type Values<T extends TSchema[]> = { [I in keyof T]: Static<T[I]> }

/** An operation on something that at most one node has. */
function ofOne<A extends TSchema[], R extends TSchema> (effect: Effect, args: [...A], result: R, run: (...args: Values<A>) => Static<R> | null | Promise<Static<R> | null>): Command<Values<A>, Static<R>> {
  return { effect, args: TypeCompiler.Compile(Type.Tuple(args)), result: TypeCompiler.Compile(result), run, merge: null }
}

/** An operation that each node has a part in. */
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

/** Adds the users of whom the connections of this node have been told that they came, and not that they left. @internal */
export function withAnnounced ({ users, complete, ...counts }: Presence, announced: Iterable<string>): Presence {
  const known = new Set(users.map(({ userId }) => userId))
  const missing = [...announced].filter(userId => !known.has(userId))
  return {
    ...counts,
    users: users.concat(missing.slice(0, MAX_NAMED_USERS).map(userId => ({ userId, connections: 0 }))),
    complete: complete && missing.length <= MAX_NAMED_USERS
  }
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
