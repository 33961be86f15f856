import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { context, ROOT_CONTEXT, SpanKind, SpanStatusCode, trace, type Attributes, type SpanOptions, type TracerProvider } from '@opentelemetry/api'
import { channelName, type Diagnostics } from '../diagnostics/channels.js'
import { InvalidOption } from '../errors.js'
import type { SSEManager } from '../manager.js'
import { kindOf } from '../util/quote.js'

/** Options of `registerTracing()`. */
export interface TracingOptions {
  /** Creates the tracer. Default: the global provider of `@opentelemetry/api`. */
  tracerProvider?: TracerProvider
}

/** A span of one channel. */
interface Traced<N extends keyof Diagnostics> {
  readonly kind: SpanKind
  attributes (payload: Diagnostics[N]): Attributes
  /** Returns the code of an error; null if there is none. */
  error (payload: Diagnostics[N]): string | null
}

type Timed = 'publish' | 'replay' | 'open'

/** The spans by channel. None lasts as long as a stream: a trace would be complete only hours later. */
const SPANS: { readonly [N in Timed]: Traced<N> } = {
  publish: {
    kind: SpanKind.PRODUCER,
    attributes: ({ event, ephemeral, delivered }) => ({ 'sse.event.name': event, 'sse.event.ephemeral': ephemeral, 'sse.delivered': delivered }),
    error: ({ code }) => code
  },
  replay: {
    kind: SpanKind.INTERNAL,
    attributes: ({ clientId, events, bytes, result }) => ({ 'sse.client.id': clientId, 'sse.replay.events': events, 'sse.replay.bytes': bytes, 'sse.replay.result': result }),
    error: () => null
  },
  open: {
    kind: SpanKind.INTERNAL,
    attributes: ({ clientId, managed }) => ({ 'sse.client.id': clientId, 'sse.managed': managed }),
    error: () => null
  }
}

/**
 * Creates spans of OpenTelemetry for a manager: `sse publish`, `sse replay`, and `sse open` for the time from a request to the headers of
 * its stream. A span is a child of the span that is active at its end, such as that of the request. Returns a function that ends it.
 * @throws SSE_ERR_INVALID_OPTION
 * @example
 * ```ts
 * import { registerTracing } from 'fastify-sse-manager/otel'
 *
 * const stop = registerTracing(app.sse)
 * app.addHook('onClose', async () => { stop() })
 * ```
 */
export function registerTracing (manager: SSEManager, { tracerProvider = trace }: TracingOptions = {}): () => void {
  const { nodeId } = (manager ?? {}) as Partial<SSEManager>
  if (typeof nodeId !== 'string') throw new InvalidOption('manager', `of registerTracing() must be a manager such as app.sse, got ${kindOf(manager)}`)
  const tracer = tracerProvider.getTracer('fastify-sse-manager')
  const record = <N extends Timed>(channel: N, payload: Diagnostics[N]): void => {
    if (payload.nodeId !== nodeId) return
    const { kind, attributes, error } = SPANS[channel] as Traced<N>
    const endTime = Date.now()
    const options: SpanOptions = { kind, startTime: endTime - payload.durationMs, attributes: { 'sse.node.id': nodeId, ...attributes(payload) } }
    // Without the other values of the context: instrumentation-http suppresses all spans of a request that it ignores.
    const parent = trace.getSpanContext(context.active())
    const span = tracer.startSpan(`sse ${channel}`, options, parent === undefined ? ROOT_CONTEXT : trace.setSpanContext(ROOT_CONTEXT, parent))
    const code = error(payload)
    if (code !== null) span.setAttribute('error.type', code).setStatus({ code: SpanStatusCode.ERROR })
    span.end(endTime)
  }
  const stops = (Object.keys(SPANS) as Timed[]).map(channel => {
    const take = (payload: unknown): void => record(channel, payload as Diagnostics[typeof channel])
    subscribe(channelName(channel), take)
    return () => { unsubscribe(channelName(channel), take) }
  })
  return () => { for (const stop of stops) stop() }
}
