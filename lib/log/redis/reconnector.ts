import type { Connect, Connection } from './client.js'

/** Reports that a connection works, with null, or the problem that prevents it. */
export type Report = (problem: Error | null) => void

/** Uses a connection until it fails. Never resolves; rejects when the connection has failed. */
export type Serve = (connection: Connection, report: Report) => Promise<never>

const FIRST_DELAY_MS = 50
const MAX_DELAY_MS = 1_000
/** A connection that worked for this long resets the back-off. */
const SETTLED_MS = 2_000

/** Keeps one connection to Redis open. After a loss, it reconnects with exponential back-off and jitter. */
export class Reconnector {
  readonly #connect: Connect
  readonly #serve: Serve
  readonly #onChange: Report
  readonly #stop = new AbortController()
  #running: Promise<void> | null = null
  #wake: (() => void) | null = null

  /** @param onChange called with null when the connection works, and with the error when it fails or an attempt has failed */
  constructor ({ connect, serve, onChange }: { connect: Connect, serve: Serve, onChange: Report }) {
    this.#connect = connect
    this.#serve = serve
    this.#onChange = onChange
  }

  /** Starts to connect. */
  start (): void {
    this.#running ??= this.#run()
  }

  /** Skips the current back-off. Called when another connection has succeeded. */
  hurry (): void {
    this.#wake?.()
  }

  /** Closes the connection. Resolves when no attempt is running. */
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
      // Jitter: without it, all nodes would reconnect at the same time.
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
  }

  /** Makes one connection and uses it. Resolves with the error that ended it, and the time for which it worked. */
  async #once (signal: AbortSignal): Promise<{ error: Error, lastedMs: number }> {
    let upSince = Infinity
    let over = false
    let connection: Connection | null = null
    let lose!: (error: Error) => void
    const lost = new Promise<never>((_resolve, reject) => { lose = reject })
    lost.catch(() => {})
    const onAbort = () => lose(signal.reason)
    signal.addEventListener('abort', onAbort)
    try {
      connection = await this.#connect(lose, signal)
      signal.throwIfAborted()
      const report: Report = problem => {
        // A late reply of this connection must not report on the next one.
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
