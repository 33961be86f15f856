import type { Test } from 'tap'

/** Sets global variables until the test ends. */
export function setGlobals (t: Test, given: Record<string, unknown>): void {
  const before = Object.getOwnPropertyDescriptors(globalThis)
  for (const [name, value] of Object.entries(given)) Object.defineProperty(globalThis, name, { value, configurable: true, writable: true })
  t.teardown(() => {
    for (const name of Object.keys(given)) {
      Reflect.deleteProperty(globalThis, name)
      if (name in before) Object.defineProperty(globalThis, name, before[name as keyof typeof before])
    }
  })
}
