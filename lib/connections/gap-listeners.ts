import type { GapReason } from '../log/broker.js'
import type { Log } from '../util/logger.js'
import { inNoContext } from '../util/async-context.js'

/** A gap in the events of a connection, as `connection.onGap()` reports it. */
export interface ConnectionGap {
  /** Why the events cannot be replayed. */
  readonly reason: GapReason
  /** The cursor of the client before the gap; empty if it is not known. */
  readonly lastEventId: string
  /** Whether a snapshot follows, which replaces the state of the client. */
  readonly snapshot: boolean
}

/** A function that is called for each gap. */
export type GapListener = (gap: ConnectionGap) => void | Promise<void>

/** The listeners of one connection for its gaps. */
export class GapListeners {
  readonly #listeners: GapListener[] = []
  /** Gaps that no listener has received, such as a gap that is found before the application receives the connection. */
  #unheard: ConnectionGap[] = []
  readonly #log: Log

  constructor (log: Log) {
    this.#log = log
  }

  /** Reports a gap. */
  add (gap: ConnectionGap): void {
    if (this.#listeners.length === 0) this.#unheard = [gap]
    else queueMicrotask(() => this.#call(gap))
  }

  /** Adds a listener. Calls it for the last gap if no listener has received it. */
  listen (listener: GapListener): void {
    this.#listeners.push(listener)
    for (const gap of this.#unheard.splice(0)) queueMicrotask(() => this.#call(gap))
  }

  #call (gap: ConnectionGap): void {
    for (const listener of this.#listeners) inNoContext(async () => { await listener(gap) }).catch((err: unknown) => { this.#log.error({ err }, 'A listener of connection.onGap() failed') })
  }
}
