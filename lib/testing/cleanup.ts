/** A test that runs functions when it ends: the test context of `node:test` (`after`), tap (`teardown`) or vitest (`onTestFinished`). */
export type TestContext =
  | { /** Of `node:test`. */ after (run: () => unknown): unknown }
  | { /** Of tap. */ teardown (run: () => unknown): unknown }
  | { /** Of vitest. */ onTestFinished (run: () => unknown): unknown }

/** Runs the function when the test ends, whether it passes or fails. Does nothing without a test. */
export function whenTestEnds (test: TestContext | undefined, run: () => unknown): void {
  if (test === undefined) return
  // `teardown` is checked before `after`: tap has both, and documents `teardown`.
  if ('teardown' in test) test.teardown(run)
  else if ('onTestFinished' in test) test.onTestFinished(run)
  else test.after(run)
}
