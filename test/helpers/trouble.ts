import type { Test } from 'tap'

/**
 * Calls `note` with each unhandled rejection, uncaught exception and warning of this process. Returns a function that stops it.
 * @param exceptions `uncaughtExceptionMonitor` leaves an exception to the test runner, which fails the test.
 */
export function onTrouble (note: (what: unknown, event: string) => void, exceptions: 'uncaughtException' | 'uncaughtExceptionMonitor' = 'uncaughtException'): () => void {
  const listeners = ['unhandledRejection', exceptions, 'warning'].map(event => {
    // DEP0205: Node 26 deprecates the loader that the test runner uses.
    const listener = (what: unknown) => { if ((what as { code?: unknown } | null)?.code !== 'DEP0205') note(what, event) }
    process.on(event, listener)
    return [event, listener] as const
  })
  return () => { for (const [event, listener] of listeners) process.off(event, listener) }
}

/** Everything the process complains about while a test runs. */
export function listenForTrouble (t: Test): unknown[] {
  const trouble: unknown[] = []
  t.teardown(onTrouble(what => { trouble.push(what) }, 'uncaughtExceptionMonitor'))
  return trouble
}
