import { encodeIdLine } from '../wire/event-stream.js'
import type { CloseReason } from './close-reason.js'
import type { GapListener } from './gap-listeners.js'
import { Sender } from './sender.js'

/** Longest minimum of the reconnection time after failed loads. A random part of up to the same time is added. */
const MAX_WAIT_MS = 30_000

/** Sends the state of a client before the events that change it, and reports gaps. */
export abstract class StateFirst extends Sender {
  // --- Implemented by subclasses ---

  /** The cursor of the client; null for a first connect. */
  abstract readonly lastEventId: string | null
  /** Closes the stream with `sse:close`. */
  abstract close (reason?: string): void

  /**
   * Whether the stream continues at the cursor of the client without a gap. False for a client without a cursor, and after a gap. Null
   * until it is known: the events after the cursor are still read from the log, or this node has not reached the cursor.
   */
  get resumed (): boolean | null {
    return this.backlog.resumed
  }

  /**
   * Calls a function for each gap in the events of this connection, also for a gap at its start that was found before this call. The
   * client receives `sse:gap` in any case. Errors of the function are logged.
   * @example
   * ```ts
   * const connection = await reply.sse({ subscriptions: ['chat:7'] })
   * connection.onGap(({ reason }) => connection.sendEvent({ event: 'history', data: { reason } }))
   * ```
   */
  onGap (listener: GapListener): void {
    this.backlog.onGap(listener)
  }

  /** Handles a subscription that was added. @internal */
  added (subscription: string): void {
    if (this.hasEnded()) return
    this.backlog.added(subscription)
    if (this.backlog.behind) this.context.flusher.mark(this)
  }

  /** Starts deliveries, and the load of a snapshot. @internal */
  protected override goLive (position: number): void {
    super.goLive(position)
    const { resumed } = this.backlog
    if (this.managed && resumed !== null) this.context.telemetry.onResume(this.clientId, resumed ? 'resumed' : this.lastEventId === null ? 'fresh' : 'gap')
    this.backlog.snapshot?.open()
  }

  /** See `SnapshotHost`. @internal */
  onLoadStarted (position: number): void {
    this.backlog.hold(position)
    if (this.backlog.wantsPage) this.context.flusher.mark(this)
  }

  /** See `SnapshotHost`. @internal */
  onLoaded (): void {
    if (!this.hasEnded()) this.context.flusher.mark(this)
  }

  /** See `SnapshotHost`. @internal */
  onLoadFailed (): void {
    this.close('snapshot-error' satisfies CloseReason)
  }

  /** See `StateSender`. @internal */
  giveWay (): void {
    this.cut('snapshot-error' satisfies CloseReason)
    // The memory is needed now, and not when the socket is closed.
    this.finish()
  }

  /** @internal */
  override sift (): void {
    super.sift()
    if (!this.hasEnded()) this.backlog.snapshot?.revise()
  }

  /** @internal */
  override reconsider (): void {
    super.reconsider()
    if (this.hasEnded() || !(this.backlog.leads || this.backlog.snapshot?.isShared === true)) return
    // The state was loaded with earlier rights. The client reconnects, and receives what it may see now.
    this.reason = 'revoked'
    this.cut('revoked')
  }

  /** After a failed load, the cursor has the number of failures. It is part of `sse:close`, because some clients ignore blocks without data. @internal */
  protected override cursorBlock (): string {
    if (this.reason !== 'snapshot-error') return super.cursorBlock()
    const id = this.backlog.failedId
    return id === null ? '' : encodeIdLine(id)
  }

  /** Returns the minimum reconnection time of a closing stream. It doubles with each load that has failed for the client. @internal */
  protected retryAfter (retryMs: number): number {
    if (this.reason !== 'snapshot-error') return retryMs
    return Math.max(retryMs, Math.min(retryMs * 2 ** (this.backlog.snapshot?.failures ?? 0), MAX_WAIT_MS))
  }
}
