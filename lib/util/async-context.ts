import { AsyncResource } from 'node:async_hooks'

// What Node schedules carries the AsyncLocalStorage stores of the code that scheduled it: without these functions the
// application's code would be asked about one client in the context of another client's request.

/** The AsyncLocalStorage stores of a moment. */
export type AsyncContext = AsyncResource

const none = new AsyncResource('fastify-sse-manager')

/** The context of the caller, to be entered later with `inContext`. It keeps the caller's stores alive. */
export function currentContext (): AsyncContext {
  return new AsyncResource('fastify-sse-manager.filter')
}

/** Calls a function in a context. */
export function inContext<T> (context: AsyncContext, task: () => T): T {
  return context.runInAsyncScope(task)
}

/** Calls a function in the context in which this package was loaded, which is normally none. What it schedules, and awaits, goes on in there. */
export function inNoContext<T> (task: () => T): T {
  return none.runInAsyncScope(task)
}
