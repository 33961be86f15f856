/**
 * Whether there is something to wait for, a function with a `then` as well: the stub of a remote call is one. An `await` of what
 * is there already costs a promise and a turn of the microtask queue, for each stream.
 */
export function isThenable<T> (value: T | PromiseLike<T>): value is PromiseLike<T> {
  return ((typeof value === 'object' && value !== null) || typeof value === 'function') && typeof (value as { then?: unknown }).then === 'function'
}
