import type { CloseReason } from './close-reason.js'
import type { SSEConnection } from './connection.js'
import type { TimingOptions } from './timing-wheel.js'
import type { Registry } from '../subscriptions/registry.js'
import type { Clock, Timer } from '../util/clock.js'
import type { Log } from '../util/logger.js'

/** Maximum wait after the cut, for streams whose headers were never sent: `cutShort` does not end them. */
const HEADLESS_MS = 100

/** Closes all streams of a node. */
export class Drain {
  readonly #registry: Registry<SSEConnection>
  readonly #drainMs: number
  readonly #clock: Clock
  readonly #loop: { readonly ran: number }
  readonly #log: Log
  #ending: Promise<void> | null = null
  #onEmpty: (() => void) | null = null

  /** @param loop running time of the event loop in milliseconds. `drainMs` is measured by it, so that a blocked loop does not count. */
  constructor (registry: Registry<SSEConnection>, { clock, drainMs }: TimingOptions, loop: { readonly ran: number }, log: Log) {
    this.#registry = registry
    this.#drainMs = drainMs
    this.#clock = clock
    this.#loop = loop
    this.#log = log
  }

  /**
   * Closes all streams with the reason `shutdown`. Resolves when all have ended, at the latest after `drainMs` plus the time in which
   * the event loop was blocked. Later calls return the same promise.
   */
  begin (): Promise<void> {
    return (this.#ending ??= this.#begin())
  }

  async #begin (): Promise<void> {
    const startedAt = this.#clock.monotonic()
    this.#log.info({ connections: this.#registry.size, drainMs: this.#drainMs }, 'This node closes all its streams')
    for (const connection of this.#registry.all()) connection.close('shutdown' satisfies CloseReason)
    if (this.#registry.size > 0) await this.#ended()
    this.#log.info({ connections: this.#registry.size, durationMs: this.#clock.monotonic() - startedAt }, 'This node has closed all its streams')
  }

  #ended (): Promise<void> {
    return new Promise(resolve => {
      const clock = this.#clock
      let stop: Timer | undefined
      const endsAt = this.#loop.ran + this.#drainMs
      const onTime = (): void => {
        const leftMs = endsAt - this.#loop.ran
        if (leftMs > 0) {
          cut = clock.after(leftMs, onTime)
          return
        }
        for (const connection of [...this.#registry.all()]) connection.cutShort()
        // Destroyed streams end in a later turn of the event loop, so the timer is set after that turn. On a busy machine,
        // a timer that is set now could fire first.
        setImmediate(() => { if (this.#registry.size > 0) stop = clock.after(HEADLESS_MS, resolve) })
      }
      // A timer of its own, because the wheel can be a tick late.
      let cut = clock.after(this.#drainMs, onTime)
      this.#onEmpty = () => {
        clock.cancel(cut)
        clock.cancel(stop)
        resolve()
      }
    })
  }

  /** Handles the end of a stream. */
  left (): void {
    if (this.#registry.size === 0) this.#onEmpty?.()
  }
}
