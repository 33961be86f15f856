import { AsyncLocalStorage } from 'node:async_hooks'
import { context, ROOT_CONTEXT, type Context } from '@opentelemetry/api'
import { BasicTracerProvider, type ReadableSpan } from '@opentelemetry/sdk-trace-base'
import type { Test } from 'tap'

/** A provider whose ended spans are kept, and contexts that follow asynchronous calls, until the test ends. */
export function startTracing (t: Test): { provider: BasicTracerProvider, spans: ReadableSpan[] } {
  const storage = new AsyncLocalStorage<Context>()
  context.setGlobalContextManager({
    active: () => storage.getStore() ?? ROOT_CONTEXT,
    with: (context, run, self, ...args) => storage.run(context, () => run.apply(self as never, args)),
    bind: (_context, target) => target,
    enable () { return this },
    disable () { return this }
  })
  t.teardown(() => { context.disable() })
  const spans: ReadableSpan[] = []
  const provider = new BasicTracerProvider({ spanProcessors: [{ onStart: () => {}, onEnd: span => { spans.push(span) }, forceFlush: async () => {}, shutdown: async () => {} }] })
  return { provider, spans }
}
