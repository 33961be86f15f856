import type { Connect, Connection } from './client.js'

/** Tells that a connection is of use, with null, or what keeps it from being of use. */
export type Report = (problem: Error | null) => void

/** Uses a connection for as long as it lasts; never resolves, and rejects when it is of no use any more. */
export type Serve = (connection: Connection, report: Report) => Promise<never>

const FIRST_DELAY_MS = 50
const MAX_DELAY_MS = 1_000
/** A connection that lasted this long was a good one: the next attempt comes at once. */
const SETTLED_MS = 2_000

/** Keeps one connection to Redis: makes it, has it used, and makes another when it is lost, at a bounded and spread rate. */
export class Reconnector {
  readonly #connect: Connect
  readonly #serve: Serve
  readonly #onChange: Report
  readonly #stop = new AbortController()
  #running: Promise<void> | null = null
  #wake: (() => void) | null = null

  /** @param onChange called with null when the link is of use, and with the reason when it is not or an attempt has failed. */
  constructor ({ connect, serve, onChange }: { connect: Connect, serve: Serve, onChange: Report }) {
    this.#connect = connect
    this.#serve = serve
    this.#onChange = onChange
  }

  start (): void {
    this.#running ??= this.#run()
  }

  /** There is reason to believe that the next attempt succeeds: it comes now. */
  hurry (): void {
    this.#wake?.()
  }

  async stop (): Promise<void> {
    this.#stop.abort()
    this.#wake?.()
    await this.#running
  }

  async #run (): Promise<void> {
    const { signal } = this.#stop
    let failures = 0
    while (!signal.aborted) {
      const { error, lastedMs } = await this.#once(signal)
      if (signal.aborted) return
      this.#onChange(error)
      failures = lastedMs > SETTLED_MS ? 0 : failures + 1
      // Spread, so that many nodes do not come back together.
      const delay = Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** failures) * (0.5 + Math.random() / 2)
      await this.#sleep(delay)
    }
  }

  async #sleep (ms: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    await new Promise<void>(resolve => {
      this.#wake = resolve
      timer = setTimeout(resolve, ms)
    })
    clearTimeout(timer)
    this.#wake = null
  }

  /** One connection from beginning to end; returns what ended it. */
  async #once (signal: AbortSignal): Promise<{ error: Error, lastedMs: number }> {
    let upSince = Infinity
    let over = false
    let connection: Connection | null = null
    let lose: (error: Error) => void = () => {}
    const lost = new Promise<never>((_resolve, reject) => { lose = reject })
    lost.catch(() => {})
    const onAbort = () => lose(signal.reason)
    signal.addEventListener('abort', onAbort)
    try {
      connection = await this.#connect(lose, signal)
      signal.throwIfAborted()
      const report: Report = problem => {
        // A reply that came with the end of the connection says nothing of the next one.
        if (over) return
        upSince = Math.min(upSince, performance.now())
        this.#onChange(problem)
      }
      return await Promise.race([this.#serve(connection, report), lost])
    } catch (error) {
      return { error: error as Error, lastedMs: performance.now() - upSince }
    } finally {
      over = true
      signal.removeEventListener('abort', onAbort)
      connection?.destroy()
    }
  }
}
