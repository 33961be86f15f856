/** A test that runs functions when it ends: the test context of `node:test` (`after`), tap (`teardown`) or vitest (`onTestFinished`). */
export type TestContext = NodeTest | TapTest | VitestTest

interface NodeTest {
  /** Runs the function after the test, in `node:test`. */
  after (run: () => unknown): unknown
}

interface TapTest {
  /** Runs the function after the test, in tap. */
  teardown (run: () => unknown): unknown
}

interface VitestTest {
  /** Runs the function after the test, in vitest. */
  onTestFinished (run: () => unknown): unknown
}

/** Runs the function when the test ends, whether it passes or fails. Does nothing without a test. */
export function whenTestEnds (test: TestContext | undefined, run: () => unknown): void {
  if (test === undefined) return
  // `teardown` is checked before `after`: tap has both, and documents `teardown`.
  if ('teardown' in test) test.teardown(run)
  else if ('onTestFinished' in test) test.onTestFinished(run)
  else test.after(run)
}
