import { AsyncResource } from 'node:async_hooks'

// Timers and promises keep the AsyncLocalStorage stores of the code that created them. Without these functions, callbacks of
// the application about one client would run in the context of another client's request.

/** A snapshot of the AsyncLocalStorage stores. */
export type AsyncContext = AsyncResource

const none = new AsyncResource('fastify-sse-manager')

/** Returns the context of the caller, for a later `inContext`. The result keeps the caller's stores alive. */
export function currentContext (): AsyncContext {
  return new AsyncResource('fastify-sse-manager.filter')
}

/** Calls `task` in the given context and returns its result. */
export function inContext<T> (context: AsyncContext, task: () => T): T {
  return context.runInAsyncScope(task)
}

/**
 * Calls `task` in the context in which this package was loaded, which normally has no stores. Returns the result of `task`.
 * Timers and promises that `task` creates stay in that context.
 */
export function inNoContext<T> (task: () => T): T {
  return none.runInAsyncScope(task)
}
