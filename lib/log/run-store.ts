/** Names a run: for another owner, the same id is another run. A null owner is a public run. */
export interface RunKey {
  /** The owner; null for a public run. */
  readonly ownerId: string | null
  /** The id, unique for the owner. */
  readonly runId: string
  /** One text for both. Runs of other owners or with other ids have other texts. */
  readonly text: string
}

/** How a run ended. `lost`: its node ended, or could not reach the store, before the source did. */
export type RunEnd = 'done' | 'failed' | 'stopped' | 'lost'
/** The status of a run. */
export type RunStatus = 'running' | RunEnd

/**
 * Why a run ended before its source did.
 * - `error`: the source failed, or yielded something that is not an event.
 * - `limit`: `maxEvents` or `maxBytes` was exceeded, of the run or of the node.
 * - `timeout`: `maxDurationMs` or `idleTimeoutMs` has passed.
 * - `disconnect`: nobody read it; see `onDisconnect`.
 */
export type RunEndReason = 'error' | 'limit' | 'timeout' | 'disconnect'

/** The end of a run. */
export interface RunOutcome {
  /** How it ended. */
  readonly status: RunEnd
  /** Absent for `done` and `lost`, and for a run that `stopRun()` has stopped. */
  readonly reason?: RunEndReason
}

/** The state of a run in the store. A store in memory can change the object later. */
export interface RunState {
  /** Number of the run among those with the same key, increasing. Never used twice, and hardly ever for two keys: clients send it as a part of their ids. */
  readonly generation: number
  /** The status. */
  readonly status: RunStatus
  /** Why it ended, see `RunOutcome`. */
  readonly reason?: RunEndReason | undefined
  /** Number of events so far. */
  readonly events: number
  /** Start in milliseconds since the Unix epoch. */
  readonly startedAt: number
  /** End in milliseconds since the Unix epoch; null while it runs. */
  readonly endedAt: number | null
  /** Options of the run, as its producer has given them to `claim`. */
  readonly settings: string
  /** Whether a node has readers of the run. */
  readonly isRead: boolean
}

/** What a producer needs to write to its run. */
export interface RunLease {
  /** The run. */
  readonly key: RunKey
  /** Its generation. */
  readonly generation: number
  /** Fencing token: random, known to this producer only. */
  readonly token: string
  /** Time without `append` after which the run is lost, in milliseconds. A store that dies with its producers ignores it. */
  readonly leaseMs: number
  /** Time for which the run is kept after its end, in milliseconds. */
  readonly ttlMs: number
}

/** A request to start a run. */
export interface RunClaim extends Omit<RunLease, 'generation'> {
  /** Whether a run that has ended and is still kept is returned instead of being replaced. */
  readonly joinFinished: boolean
  /** Options of the run, which `RunState` returns unchanged. */
  readonly settings: string
}

/** The result of `RunStore.claim`. */
export interface RunClaimed {
  /** The state of the run. */
  readonly state: RunState
  /** Whether this claim has started it. */
  readonly started: boolean
}

/** What a producer knows when it ends its run. */
export interface RunHeld {
  /** Its lease. */
  readonly lease: RunLease
  /** Number of its last event. */
  readonly after: number
}

/** An entry of `RunStore.list`. */
export interface RunListed {
  /** The id of the run. */
  readonly runId: string
  /** Its state. */
  readonly state: RunState
}

/** The result of `RunStore.read`. */
export interface RunPage {
  /** The current state; null if the run is not kept. It can be of a later generation than the one that was asked for. */
  readonly state: RunState | null
  /** Texts of the events that follow, oldest first. Empty at the end of the log, and for another generation. */
  readonly texts: readonly string[]
}

/** Events of a run that follow each other. */
export interface RunEvents {
  /** The generation. */
  readonly generation: number
  /** Number of the event before the first; 0 for the first event of the run. */
  readonly after: number
  /** Their texts, at least one. */
  readonly texts: readonly string[]
}

/** Receives the news of a store. */
export interface RunWatcher {
  /**
   * A run may have more events. News can be lost, and can come without a reason. `key` is the text of its key.
   * `events`: the new events, if the store has them at hand; they have been stored.
   */
  news (key: string, events?: RunEvents): void
  /** A run may have ended; as `news`. */
  ended (key: string): void
}

/**
 * Keeps runs: for each, its state and the texts of its events. Every implementation guarantees the following.
 *
 * - Of all calls of `claim` for a key on all nodes, one starts a generation. The others return it while it is kept.
 * - Events are numbered from 1 within a generation. No event is removed before the whole run.
 * - `append` and `finish` with a lease have an effect only while the run has the token of the lease and is running.
 * - A run ends once. A later `finish` has no effect and returns the first end.
 * - A running run whose lease has expired is `lost`: whoever reads, claims or finishes it next writes that end.
 * - A run is removed `ttlMs` after its end. A running one is kept at least until its lease ends.
 * - A call can be repeated after a reply was lost: it has no second effect.
 * - `append` and `read` return their result itself if the store has it at once: a promise for each event would cost more than the event.
 * - Calls reject with SSE_ERR_BROKER_UNAVAILABLE if the store cannot be reached, and with SSE_ERR_CLOSED after `close`.
 */
export interface RunStore {
  /** Whether other nodes can read and write the same runs. */
  readonly shared: boolean
  /** Sets who receives the news. Called once, before all other calls. */
  watch (watcher: RunWatcher): void
  /** Starts a run, or returns the state of the run that exists. */
  claim (claim: RunClaim): Promise<RunClaimed>
  /**
   * Appends events after number `after`, and renews the lease. Without texts, only the lease is renewed. Resolves with null, and
   * appends nothing, if the run does not have this lease any more, has ended, or does not end at `after`.
   */
  append (lease: RunLease, after: number, texts: readonly string[]): RunState | null | Promise<RunState | null>
  /**
   * Ends a run. Its producer gives `held`: if the store has lost events, the run is `lost`. Without it, any running generation is ended. Resolves with the state afterwards; null if the run is not kept, or has another generation.
   */
  finish (key: RunKey, outcome: RunOutcome, held?: RunHeld): Promise<RunState | null>
  /** Resolves with the state of a run; null if it is not kept. */
  get (key: RunKey): Promise<RunState | null>
  /** Reads events of a generation after number `after`, up to about `PAGE_BYTES`, and up to `PAGE_EVENTS`. `isReader`: clients of this node read the run. */
  read (key: RunKey, generation: number, after: number, isReader: boolean): RunPage | Promise<RunPage>
  /** Reports that no client of this node reads the run any more. */
  leave (key: RunKey): Promise<void>
  /** Resolves with the runs of an owner that are kept, the newest first. */
  list (ownerId: string | null): Promise<RunListed[]>
  /** Releases all resources. */
  close (): Promise<void>
}

/** Approximate maximum size of a page in characters. Each slow reader keeps a page, so it is as small as one write to a socket. */
export const PAGE_BYTES = 16 * 1024
/** Maximum number of events in a page: in memory, a short event takes many times its size. */
export const PAGE_EVENTS = 256

/** Returns whether these texts are no more than a page. */
export function fitsPage (texts: readonly string[]): boolean {
  let size = 0
  for (const text of texts) size += text.length
  return size <= PAGE_BYTES && texts.length <= PAGE_EVENTS
}

/** Returns the key of a run. The length comes first in its text, so that no other owner and id give the same text. */
export function runKey (runId: string, ownerId: string | null): RunKey {
  return { ownerId, runId, text: ownerId === null ? `-:${runId}` : `${ownerId.length}:${ownerId}:${runId}` }
}
