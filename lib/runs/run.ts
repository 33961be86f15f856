import type { RunEnd, RunEndReason, RunKey, RunState, RunStatus } from '../log/run-store.js'

/** The end of a run, with which `run.finished` resolves. */
export interface RunResult {
  /**
   * - `done`: the source has ended.
   * - `failed`: see `reason`.
   * - `stopped`: `stopRun()` was called, or see `reason`.
   * - `lost`: the node of the source ended before it, or the events could not be stored. Also if the run is not kept any more.
   */
  readonly status: RunEnd
  /**
   * For `failed`: `error`, the source failed or yielded something that is not an event; `limit`, `maxEvents` or `maxBytes` was exceeded;
   * `timeout`, `maxDurationMs` or `idleTimeoutMs` has passed. For `stopped`: `disconnect`, see `onDisconnect`. Otherwise absent.
   */
  readonly reason?: RunEndReason
  /** Number of events. */
  readonly events: number
}

/** The functions of the node that a run uses. @internal */
export interface RunHost {
  /** Resolves with the end of a run. */
  outcome (key: RunKey, known: RunState): Promise<RunResult>
}

/**
 * A source that continues without the request that started it, and that clients of all nodes read with `reply.sse(run)`. `startRun()`,
 * `getRun()` and `listRuns()` create it.
 */
export class Run {
  /** The id of the run, unique for its owner. */
  readonly id: string
  /** The owner; null for a public run. */
  readonly ownerId: string | null
  /** @internal */
  readonly key: RunKey
  readonly #host: RunHost
  readonly #live: { readonly state: RunState }
  #finished: Promise<RunResult> | null = null

  /** @param live the producer of the run if it is on this node; otherwise the state that is known @internal */
  constructor (host: RunHost, key: RunKey, live: { readonly state: RunState }) {
    this.#host = host
    this.#live = live
    this.key = key
    this.id = key.runId
    this.ownerId = key.ownerId
  }

  /** @internal */
  get state (): RunState {
    return this.#live.state
  }

  /** The status. For a run of another node, it is that at the time of the call that returned this object. */
  get status (): RunStatus {
    return this.state.status
  }

  /** Start in milliseconds since the Unix epoch, by the clock of the node or of Redis. */
  get startedAt (): number {
    return this.state.startedAt
  }

  /**
   * Resolves with the end of the run. Rejects with SSE_ERR_CLOSED if this node closes before a run of another node ends.
   * @example const { status, events } = await run.finished
   */
  get finished (): Promise<RunResult> {
    return (this.#finished ??= this.#host.outcome(this.key, this.state))
  }
}
