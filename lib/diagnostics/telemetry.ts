import { SSEError } from '../errors.js'
import type { GapReason } from '../events/control.js'
import type { OutgoingMessage } from '../events/message.js'
import { channels, type Diagnostics, type DropReason, type StartResult } from './channels.js'
import { Tally } from './tally.js'

/** A stream, as far as it is reported. */
export interface ReportedStream {
  readonly clientId: string
  readonly managed: boolean
  /** Time since the request arrived, in milliseconds. */
  readonly ageMs: number
  stats (): { readonly sentEvents: number, readonly droppedEvents: number }
}

const { open, close, refuse, resume, gap, replay, lag, drop, publish, deliver, run, health } = channels

/**
 * Counts what happens on one node, and reports it on the diagnostics channels. Each payload is an object that is made only if the channel
 * has subscribers: most of these methods run for each event. @internal
 */
export class Telemetry {
  readonly nodeId: string | null
  /** Number of streams that were admitted. */
  opened = 0
  /** Number of events that were published by this node. */
  published = 0
  /** Number of events that connections have read from the log. */
  replayed = 0
  readonly closed = new Tally()
  readonly refused = new Tally()
  readonly resumes: Record<StartResult, number> = { fresh: 0, resumed: 0, gap: 0 }
  readonly gaps: Record<GapReason, number> = { malformed: 0, epoch: 0, unknown: 0, trimmed: 0, limit: 0 }
  readonly dropped: Record<DropReason, number> = { outbox: 0, memory: 0 }
  readonly runs = { running: 0, done: 0, failed: 0, stopped: 0, lost: 0 }
  #status: Diagnostics['health']['status'] | null = null
  /** Responses to refused requests. Several functions pass on the same error, and several requests can be refused with one error. */
  readonly #refusals = new WeakSet<object>()

  /** @param nodeId null for a process that is no node */
  constructor (nodeId: string | null) {
    this.nodeId = nodeId
  }

  // --- Streams ---

  /** A stream was admitted; its headers are not sent yet. */
  onAdmit (): void {
    this.opened++
  }

  onOpen ({ clientId, managed, ageMs }: ReportedStream): void {
    if (open.hasSubscribers) open.publish({ nodeId: this.nodeId, clientId, managed, durationMs: ageMs })
  }

  /** @param isKnown whether the reason is one of this package; the number of others is limited */
  onClose (stream: ReportedStream, reason: string, isKnown: boolean): void {
    this.closed.add(reason, isKnown)
    if (!close.hasSubscribers) return
    const { clientId, managed, ageMs } = stream
    const { sentEvents, droppedEvents } = stream.stats()
    close.publish({ nodeId: this.nodeId, clientId, managed, reason, durationMs: ageMs, sentEvents, droppedEvents })
  }

  /** Can be called more than once for a response: the first error counts. */
  onRefuse (response: object, error: unknown): void {
    if (this.#refusals.has(response)) return
    this.#refusals.add(response)
    const code = codeOf(error)
    this.refused.add(code)
    if (refuse.hasSubscribers) refuse.publish({ nodeId: this.nodeId, code })
  }

  onResume (clientId: string, result: StartResult): void {
    this.resumes[result]++
    if (resume.hasSubscribers) resume.publish({ nodeId: this.nodeId, clientId, result })
  }

  onGap (clientId: string, reason: GapReason): void {
    // A broker of the application can give another reason.
    this.gaps[reason in this.gaps ? reason : 'unknown']++
    if (gap.hasSubscribers) gap.publish({ nodeId: this.nodeId, clientId, reason })
  }

  // --- Slow and resuming clients ---

  onReplay (clientId: string, events: number, bytes: number, durationMs: number, result: Diagnostics['replay']['result']): void {
    if (replay.hasSubscribers) replay.publish({ nodeId: this.nodeId, clientId, events, bytes, durationMs, result })
  }

  onLag (clientId: string): void {
    if (lag.hasSubscribers) lag.publish({ nodeId: this.nodeId, clientId })
  }

  onDrop (clientId: string, reason: DropReason): void {
    this.dropped[reason]++
    if (drop.hasSubscribers) drop.publish({ nodeId: this.nodeId, clientId, reason })
  }

  // --- Events ---

  /** Returns the time for `onPublish`; 0 if it is not needed. */
  startOfPublish (): number {
    return publish.hasSubscribers ? performance.now() : 0
  }

  onPublish ({ event, ephemeral, priority }: OutgoingMessage, delivered: number, start: number, error: unknown = null): void {
    if (error === null) this.published++
    if (publish.hasSubscribers && start > 0) publish.publish({ nodeId: this.nodeId, event, ephemeral, priority, delivered, durationMs: performance.now() - start, code: error === null ? null : codeOf(error) })
  }

  /** Whether the duration of a flush is needed. */
  get timesDelivery (): boolean {
    return deliver.hasSubscribers
  }

  onDeliver (connections: number, durationMs: number): void {
    if (deliver.hasSubscribers) deliver.publish({ nodeId: this.nodeId, connections, durationMs })
  }

  // --- Runs, and the node ---

  onRunStart (): void {
    this.runs.running++
    if (run.hasSubscribers) run.publish({ nodeId: this.nodeId, status: 'running', events: 0 })
  }

  onRunEnd (status: Exclude<Diagnostics['run']['status'], 'running'>, reason: string | undefined, events: number): void {
    this.runs.running--
    this.runs[status]++
    if (run.hasSubscribers) run.publish({ nodeId: this.nodeId, status, ...(reason !== undefined && { reason }), events })
  }

  /** Can be called more than once for a status. */
  onHealth (status: Diagnostics['health']['status']): void {
    if (status === this.#status) return
    this.#status = status
    if (health.hasSubscribers) health.publish({ nodeId: this.nodeId, status })
  }
}

function codeOf (error: unknown): string {
  return error instanceof SSEError ? error.code : 'other'
}
