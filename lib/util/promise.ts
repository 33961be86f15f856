/**
 * Returns whether a value has a `then` method. Callers avoid `await` for other values: it would cost a promise and a microtask
 * for each stream. Functions count too: stubs of remote calls are functions with `then`.
 */
export function isThenable<T> (value: T | PromiseLike<T>): value is PromiseLike<T> {
  return ((typeof value === 'object' && value !== null) || typeof value === 'function') && typeof (value as { then?: unknown }).then === 'function'
}
