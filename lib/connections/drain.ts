import type { CloseReason } from './close-reason.js'
import type { SSEConnection } from './connection.js'
import type { TimingOptions } from './timing-wheel.js'
import type { Registry } from '../subscriptions/registry.js'
import type { Clock, Timer } from '../util/clock.js'

/** How long after they were cut the streams are waited for whose head was never sent: those have no end of their own here. */
const HEADLESS_MS = 100

/** The end of all streams of a node. */
export class Drain {
  readonly #registry: Registry<SSEConnection>
  readonly #drainMs: number
  readonly #clock: Clock
  readonly #loop: { readonly ran: number }
  #ending: Promise<void> | null = null
  #onEmpty: (() => void) | null = null

  /** @param loop how long the event loop has run: clients have `drainMs` of that to read. */
  constructor (registry: Registry<SSEConnection>, { clock, drainMs }: TimingOptions, loop: { readonly ran: number }) {
    this.#registry = registry
    this.#drainMs = drainMs
    this.#clock = clock
    this.#loop = loop
  }

  /** Tells each client its place and when to come back. Resolves when all are gone, after `drainMs` at the latest, and what the event loop stood still. Once or more. */
  begin (): Promise<void> {
    return (this.#ending ??= this.#begin())
  }

  async #begin (): Promise<void> {
    for (const connection of this.#registry.all()) connection.close('shutdown' satisfies CloseReason)
    if (this.#registry.size === 0) return
    await new Promise<void>(resolve => {
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
        // The ends of those that were cut come in a later turn of the event loop, which must not be overtaken: on a busy
        // machine a timer that had been set before would be due already.
        setImmediate(() => { if (this.#registry.size > 0) stop = clock.after(HEADLESS_MS, resolve) })
      }
      // By the millisecond: the wheel may be a tick late.
      let cut = clock.after(this.#drainMs, onTime)
      this.#onEmpty = () => {
        clock.cancel(cut)
        clock.cancel(stop)
        resolve()
      }
    })
  }

  /** A stream has ended. */
  left (): void {
    if (this.#registry.size === 0) this.#onEmpty?.()
  }
}
