/** Whether there is something to wait for. An `await` of what is there already costs a promise and a turn of the microtask queue, for each stream. */
export function isThenable<T> (value: T | PromiseLike<T>): value is PromiseLike<T> {
  return typeof value === 'object' && value !== null && 'then' in value && typeof value.then === 'function'
}
