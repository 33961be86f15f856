/**
 * A test that runs functions when it ends: the context of `node:test` (`after`), of tap (`teardown`) or of vitest (`onTestFinished`).
 */
export type TestContext =
  | { after (run: () => unknown): unknown }
  | { teardown (run: () => unknown): unknown }
  | { onTestFinished (run: () => unknown): unknown }

/** Runs the function when the test ends, however it ends. */
export function whenTestEnds (test: TestContext | undefined, run: () => unknown): void {
  if (test === undefined) return
  // Before `after`: tap has both, and documents this one.
  if ('teardown' in test) test.teardown(run)
  else if ('onTestFinished' in test) test.onTestFinished(run)
  else test.after(run)
}
