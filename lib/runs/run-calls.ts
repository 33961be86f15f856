import { BroadcastCalls } from '../delivery/broadcast-calls.js'
import type { AnyCatalogue, RegisteredCatalogue } from '../events/event-input.js'
import type { BroadcastOptions } from '../events/target.js'
import { InvalidOption } from '../errors.js'
import type { RunFactory } from './producer.js'
import type { Run } from './run.js'
import type { RunOptions, RunOwner } from './run-options.js'
import type { Runs } from './runs.js'

/** The calls of a manager, and of a publisher, that concern runs. */
export abstract class RunCalls<O extends BroadcastOptions = BroadcastOptions, C extends AnyCatalogue = RegisteredCatalogue> extends BroadcastCalls<O, C> {
  /** @internal */
  abstract override readonly node: BroadcastCalls['node'] & { readonly runs: Runs | null }

  /**
   * Starts a run: reads the source to its end, whether clients are connected or not. If the run is running already, on any node, it is
   * returned with `started: false`, and the source is not called. Send it with `reply.sse(run)`.
   * @param runId 1 to 256 bytes, unique for the owner
   * @throws SSE_ERR_INVALID_RUN_ID, SSE_ERR_INVALID_SOURCE, SSE_ERR_INVALID_OPTION, SSE_ERR_TOO_MANY_RUNS, SSE_ERR_TOO_MANY_USER_RUNS,
   * SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   * @example const { run } = await app.sse.startRun('answer:7', ({ signal }) => model.stream(prompt, { signal }), { ownerId: 'ada' })
   */
  startRun (runId: string, source: RunFactory, options: RunOptions): Promise<{ run: Run, started: boolean }> {
    return this.#withRuns(runs => runs.start(runId, source, options))
  }

  /**
   * Resolves with a run of any node that is running, or has ended less than its `ttlMs` ago; otherwise with null.
   * @throws SSE_ERR_INVALID_RUN_ID, SSE_ERR_INVALID_OPTION, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   * @example return reply.sse(await app.sse.getRun('answer:7', { ownerId: 'ada' }))
   */
  getRun (runId: string, owner: RunOwner): Promise<Run | null> {
    return this.#withRuns(runs => runs.get(runId, owner))
  }

  /**
   * Stops a run on any node. Resolves when its end is stored: with true if the run is stopped, by this call or an earlier one, and with
   * false if it does not exist or has ended otherwise. What its source yields afterwards is discarded.
   * @throws SSE_ERR_INVALID_RUN_ID, SSE_ERR_INVALID_OPTION, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   */
  stopRun (runId: string, owner: RunOwner): Promise<boolean> {
    return this.#withRuns(runs => runs.stop(runId, owner))
  }

  /**
   * Resolves with the runs of an owner on all nodes, the newest first, including those that have ended and are still kept.
   * @throws SSE_ERR_INVALID_OPTION, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_CLOSED
   */
  listRuns (owner: RunOwner): Promise<Run[]> {
    return this.#withRuns(runs => runs.list(owner))
  }

  async #withRuns<T> (call: (runs: Runs) => Promise<T>): Promise<T> {
    const { runs } = this.node
    if (runs === null) throw new InvalidOption('broker', 'is shared and keeps no runs: it has no property "runs"')
    return await call(runs)
  }
}
