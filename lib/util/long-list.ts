import { setImmediate as endOfTurn } from 'node:timers/promises'

/** Yields the items in arrays of `size`, each in a turn of the event loop of its own: other work runs between them. */
export async function * portions<T> (items: Iterable<T>, size: number): AsyncGenerator<readonly T[], void> {
  let portion: T[] = []
  for (const item of items) {
    portion.push(item)
    if (portion.length < size) continue
    yield portion
    portion = []
    await endOfTurn()
  }
  yield portion
}
