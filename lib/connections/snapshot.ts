import { PRIORITIES } from '../events/event-rules.js'
import type { Target } from '../events/target.js'
import type { Broker, GapReason } from '../log/broker.js'
import { formatCursor, parseCursor } from '../log/cursor.js'
import type { Frame } from '../delivery/frame.js'
import type { ConnectionContext } from './context.js'
import { failedId } from './snapshot-mark.js'
import { Lead } from './lead.js'
import type { StateSender } from './loaded-states.js'
import { Outbox } from './outbox.js'
import type { OutboxOwner } from './outbox-owner.js'
import { gapAfter } from './resumption.js'
import type { Load, LoadWaiter, SnapshotReason, SnapshotSource } from './snapshot-loads.js'

/** Number of times that the log can be trimmed, or lose its continuity, while one state is loaded. */
const MAX_TRIMS = 2
/** An id that is no cursor. It takes the place of an invalid one, so that its client receives a gap event again. */
const NO_CURSOR = '-'

/** The connection that receives snapshots. */
export interface SnapshotHost extends StateSender {
  /** The topics and patterns of the connection. */
  readonly held: ReadonlySet<string>
  /** The position of the state of added subscriptions is known: events up to it are sent before. */
  onLoadStarted (position: number): void
  /** The state is loaded, and can be sent. */
  onLoaded (): void
  /** The state could not be loaded. */
  onLoadFailed (): void
}

/** How a connection connects, as far as its snapshots are concerned. */
export interface SnapshotPlan {
  readonly source: SnapshotSource
  /** Subscriptions of which a client that resumes has no state. */
  readonly fresh: Iterable<string>
  /** Number of loads that have failed for the client. */
  readonly failures: number
}

/** The snapshots of one connection: whether its client needs a state, and what waits behind it. */
export class Snapshot implements LoadWaiter {
  readonly #context: ConnectionContext
  readonly #host: SnapshotHost
  readonly #owner: OutboxOwner
  readonly #source: SnapshotSource
  /** Why a state is needed; null if the client has it. */
  #reason: SnapshotReason | null = null
  #load: Load | null = null
  /** The load that the connection has left. While its call of the application continues, no other begins: a client has one call at a time. */
  #left: Load | null = null
  /** The load whose events are being sent. */
  #sending: Load | null = null
  /** Earliest position of a running load that can be joined: the client was sent events up to it. Null: the position of the log. */
  #floor: number | null = null
  /** Ephemeral events that are sent after the snapshot. */
  #behind: Outbox | null = null
  /** Subscriptions of which the client has no state, and no load has been asked for. */
  readonly #owed: Set<string>
  /** Subscriptions that the application was asked for. */
  #asked: readonly string[] = []
  /** Whether the stream is open. Nothing is loaded before. */
  isOpen = false
  #trims = 0
  #failures: number
  /** The id of the client before it received a snapshot; null if it is not known. */
  #claim: string | null

  constructor (context: ConnectionContext, host: SnapshotHost, owner: OutboxOwner, { source, fresh, failures }: SnapshotPlan, lastEventId: string | null) {
    this.#context = context
    this.#host = host
    this.#owner = owner
    this.#source = source
    this.#owed = new Set(fresh)
    this.#failures = failures
    this.#claim = lastEventId === null ? '' : parseCursor(lastEventId) === null ? NO_CURSOR : lastEventId
  }

  /** Whether a snapshot is needed that was not placed yet. */
  get isPending (): boolean {
    return this.#reason !== null
  }

  /** Whether the pending snapshot replaces all state of the client. */
  get replaces (): boolean {
    return this.#reason === 'connect' || this.#reason === 'gap'
  }

  /** Whether the pending snapshot is loaded. */
  get isLoaded (): boolean {
    return this.#load?.state === 'done'
  }

  /** Whether subscriptions were added whose state was not asked for. */
  get owes (): boolean {
    return this.#owed.size > 0
  }

  /** The end of a cursor that is sent now. Null: no cursor, because the client would resume without its state. */
  get mark (): string | null {
    return this.replaces ? null : this.isPending || this.owes ? failedId('', this.#failures) : ''
  }

  /** Number of loads that have failed for the client before. */
  get failures (): number {
    return this.#failures
  }

  /** Memory of the events that wait behind the snapshot, in bytes. */
  get bytes (): number {
    return this.#behind?.bytes ?? 0
  }

  /** Number of ephemeral events dropped behind the pending snapshot. */
  get dropped (): number {
    return this.#behind?.dropped ?? 0
  }

  /**
   * Returns the id of the client after this load has failed; null if its id remains.
   * @param cursor what the client has received
   */
  failedId (cursor: string | null): string | null {
    const claim = this.#reason === 'connect' ? '' : this.#reason === 'gap' ? this.#claim : cursor
    return claim === null ? null : failedId(claim, this.#failures + 1)
  }

  /** Notes a subscription of which the client has no state. */
  owe (subscription: string): void {
    this.#owed.add(subscription)
  }

  /**
   * Requires a snapshot.
   * @param floor earliest position of a running load that can be joined; null: the position of the log
   */
  need (reason: SnapshotReason, floor: number | null = null): void {
    const { outboxBytes, budget } = this.#context
    this.#leave()
    this.#reason = reason
    this.#floor = floor
    this.#behind ??= new Outbox(outboxBytes, budget, this.#owner)
    this.begin()
  }

  /** Handles that the stream is open. */
  open (): void {
    this.isOpen = true
    this.begin()
  }

  /**
   * Loads again, because the log no longer has what follows the position. Ends the stream when that has happened too often.
   * @param floor earliest position of a running load that can be joined
   */
  again (floor: number): void {
    this.#floor = floor
    // Before the load starts, it has no position.
    if (this.#load === null || this.#load.at === null) return
    if (++this.#trims < MAX_TRIMS) return this.need(this.#reason!, floor)
    this.#giveUp()
  }

  /** Ends the stream without its state. Nothing is loaded while it closes. */
  #giveUp (): void {
    this.isOpen = false
    this.#leave()
    this.#host.onLoadFailed()
  }

  /** Loads again with the current rights of the connection. A shared state does not depend on them. */
  revise (): void {
    if (this.#source.key !== undefined) return
    this.#oweAsked()
    this.#leave()
    this.begin()
  }

  /** Notes that the client still has no state of what the application was asked for. */
  #oweAsked (): void {
    for (const subscription of this.#asked) this.#owed.add(subscription)
  }

  /** Whether the pending snapshot could contain what the client may no longer receive, although `revise` was called. */
  get isShared (): boolean {
    return this.isPending && this.#source.key !== undefined
  }

  /** Asks for the pending snapshot, unless the client does not read at present: what is loaded would wait in memory. */
  begin (): void {
    if (!this.isPending || !this.isOpen || this.#load !== null || this.#left?.isCounted === true || this.#host.blocked) return
    this.#left = null
    const { key } = this.#source
    // A loader with a key must not have access to a connection, which keeps the state of one client from another.
    const load = this.#source.load as (question: object) => unknown
    if (key !== undefined) this.#owed.clear()
    const ask = key !== undefined ? (signal: AbortSignal) => load({ key, signal }) : (signal: AbortSignal) => this.#ask(signal)
    this.#load = this.#context.snapshotLoads.begin(this.#source, ask, this, this.#floor ?? this.#context.eventLog.position)
    if (this.#load.at !== null) this.loadStarted(this.#load)
  }

  /** Calls the application with what is needed now: subscriptions can have changed since the load was asked for. */
  #ask (signal: AbortSignal): unknown {
    const reason = this.#reason
    const { held } = this.#host
    const subscriptions = this.#asked = [...held].filter(subscription => reason !== 'added' || this.#owed.has(subscription))
    this.#owed.clear()
    if (reason === 'added' && subscriptions.length === 0) return null
    return (this.#source.load as (question: object) => unknown)({ connection: this.#host, subscriptions, reason, signal })
  }

  get blocked (): boolean {
    return this.#host.blocked
  }

  loadStarted ({ at }: Load): void {
    if (this.#reason !== 'added') return
    this.#floor = at!.position
    this.#host.onLoadStarted(at!.position)
  }

  loaded (): void {
    this.#host.onLoaded()
  }

  postpone (): void {
    this.#oweAsked()
    this.#leave()
  }

  loadFailed (load: Load): void {
    if (this.#load === load) this.#giveUp()
  }

  /** Queues an ephemeral frame behind the pending snapshot. Returns false if it was dropped. */
  queue (frame: Frame): boolean {
    return this.#behind!.push(frame, this.#context.eventLog.position)
  }

  /** Removes waiting frames whose target no longer includes this connection. */
  sift (isTarget: (target: Target) => boolean): void {
    this.#behind?.sift(isTarget)
  }

  /** Asks the log for the events after the loaded snapshot; see `gapAfter`. The snapshot can be another one when this resolves. */
  async check (broker: Broker): Promise<{ load: Load, gap: GapReason | null }> {
    const load = this.#load!
    const { epoch, position } = load.at!
    return { load, gap: await gapAfter(broker, epoch, position) }
  }

  /** Returns whether this load is the one that is waited for. */
  isAt (load: Load): boolean {
    return this.#load === load
  }

  /** Ends the wait. Returns the outbox of what follows: the snapshot, then all events after its position. */
  place (): Outbox {
    const { eventLog, budget } = this.#context
    const load = this.#load!
    const { epoch, position } = load.at!
    const outbox = this.#behind!
    outbox.startAt(new Array<number>(PRIORITIES).fill(position), eventLog.position)
    outbox.leadWith(new Lead(load.frames, formatCursor(epoch, position), budget))
    this.sent()
    this.#sending = load
    load.senders.add(this.#host)
    this.#behind = this.#reason = this.#claim = null
    this.#asked = []
    this.#trims = this.#failures = 0
    this.#leave()
    return outbox
  }

  /** Handles that the state is written, or discarded. */
  sent (): void {
    const load = this.#sending
    this.#sending = null
    if (load !== null) this.#context.snapshotLoads.sent(load, this.#host)
  }

  /** Ends the wait of a stream that has ended. */
  cancel (): void {
    this.isOpen = false
    this.sent()
    this.#leave()
    this.#behind?.discard()
  }

  #leave (): void {
    const load = this.#load
    if (load === null) return
    // A load with a key is not of this client alone.
    this.#left = load.isCounted && this.#source.key === undefined ? load : null
    this.#load = null
    this.#context.snapshotLoads.leave(load, this)
  }
}
