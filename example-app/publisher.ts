import type { FastifyInstance } from 'fastify'
import type { Board } from './board.js'
import type { Roster } from './roster.js'

const SAMPLE_MS = 1_000
const LOG_MS = 400

/** Publishes measurements and log lines while the app is running. */
export function publish (app: FastifyInstance, board: Board, roster: Roster): void {
  const timers: NodeJS.Timeout[] = []
  let reading: Promise<void> | null = null

  app.addHook('onReady', async () => {
    board.machine.start()
    roster.start()
    timers.push(setInterval(() => {
      app.sse.broadcastData('machine', board.machine.read(), { subscriptionIds: ['machine'] }).catch(failed)
    }, SAMPLE_MS))
    timers.push(setInterval(() => { readLog().catch(failed) }, LOG_MS))
  })

  app.addHook('preClose', async () => {
    for (const timer of timers) clearInterval(timer)
    roster.stop()
    board.machine.stop()
    await reading
    await board.log.close()
  })

  function readLog (): Promise<void> {
    // With a slow disk, the next read must not start before the last one has ended.
    reading ??= readOnce().finally(() => { reading = null })
    return reading
  }

  async function readOnce (): Promise<void> {
    for (const data of await board.log.read()) await app.sse.broadcastData('log', data, { subscriptionIds: ['log'] })
  }

  function failed (error: unknown): void {
    app.log.warn({ err: error }, 'publishing failed')
  }
}
