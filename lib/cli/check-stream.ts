import type { ParsedEvent } from '../client/event-parser.js'
import type { Answer } from './exchange.js'
import { duration, printable, type Finding } from './finding.js'
import { latestMs, type Observation } from './observation.js'
import type { Proxy } from './proxy.js'

/** A stream that ends earlier has ended at once. */
const AT_ONCE_MS = 500
/** Common proxies cut a connection that is silent for a minute. */
const COMMON_LIMIT_MS = 55_000
/** A shorter watch does not tell whether a server sends keep-alives. */
const USUAL_INTERVAL_MS = 30_000
const KEEP_ALIVE = "setInterval(() => response.write(': keep-alive\\n\\n'), 15_000)"
const MIN_RETRY_MS = 100

/** Returns the findings about a stream that was watched. */
export function checkStream (answer: Answer, seen: Observation, proxy: Proxy): Finding[] {
  return [...checkOpening(answer, seen, proxy), ...checkRetry(seen), ...(seen.ending === 'open' ? checkSilence(seen, proxy) : [checkEnd(seen, proxy)])]
}

function checkOpening (answer: Answer, { firstTextMs, durationMs, ending }: Observation, proxy: Proxy): Finding[] {
  if (firstTextMs !== null) return [{ check: 'opening', level: 'ok', text: `The first text arrives ${duration(firstTextMs)} after the headers.` }]
  if (ending !== 'open') return []
  return [{
    check: 'opening',
    level: 'warning',
    text: `Nothing follows the headers within ${duration(durationMs)}: the server writes nothing, or ${proxy.name} buffers it.`,
    change: "response.write(': open\\n\\n')   # at the beginning of each stream, to tell which"
  }]
}

function checkRetry ({ retryMs }: Observation): Finding[] {
  if (retryMs === null || retryMs >= MIN_RETRY_MS) return []
  return [{ check: 'retry', level: 'problem', text: `The reconnection time is ${retryMs} ms: clients of a server that is down reconnect without a pause.`, change: 'a line `retry: 3000` at the beginning of each stream' }]
}

/** A stream that is still open: whether its text arrives when it is written, and often enough. */
function checkSilence ({ announcedMs, keepAliveMs, bunches, longestSilenceMs, durationMs }: Observation, proxy: Proxy): Finding[] {
  if (announcedMs !== null && longestSilenceMs > latestMs(announcedMs)) {
    return [{ check: 'delivery', level: 'problem', text: `Nothing arrives for ${duration(longestSilenceMs)}, although the server writes at least every ${duration(announcedMs)}: ${proxy.name} buffers the response.`, change: proxy.buffering }]
  }
  if (bunches > 1) return [{ check: 'delivery', level: 'problem', text: `Keep-alives arrive several at once: ${proxy.name} buffers the response.`, change: proxy.buffering }]
  const intervalMs = keepAliveMs ?? 0
  if (intervalMs > COMMON_LIMIT_MS) return [{ check: 'idle', level: 'warning', text: `Keep-alives arrive every ${duration(intervalMs)}, and common proxies cut a connection after 60 s without data.`, change: KEEP_ALIVE }]
  if (intervalMs > 0) return [{ check: 'delivery', level: 'ok', text: `Keep-alives arrive one by one, after ${duration(intervalMs)} of silence at most.` }]
  if (longestSilenceMs < durationMs / 2) return [{ check: 'delivery', level: 'ok', text: `Events arrive, with ${duration(longestSilenceMs)} of silence at most.` }]
  if (durationMs < USUAL_INTERVAL_MS) return [{ check: 'idle', level: 'note', text: `No keep-alive arrives within ${duration(durationMs)}.`, change: '--watch 70   # seconds, to see whether the stream lives through a minute of silence' }]
  return [{ check: 'idle', level: 'warning', text: `No keep-alive arrives within ${duration(durationMs)}, and common proxies cut a connection after 60 s without data.`, change: KEEP_ALIVE }]
}

/** A stream that has ended while it was watched. */
function checkEnd (seen: Observation, proxy: Proxy): Finding {
  const { ending, durationMs, lastSilenceMs, announcedMs, events, retryMs, firstTextMs } = seen
  const last = events.at(-1)
  const said = last?.event === 'sse:close' || last?.event === 'sse:end' || last?.event === 'sse:error' ? controlFinding(last) : null
  if (said !== null) return said
  if (ending === 'end') {
    if (retryMs !== null && events.length === 0 && announcedMs === null) return { check: 'status', level: 'problem', text: `The answer only asks to reconnect after ${duration(retryMs)}: ${proxy.name} reaches no server.`, change: 'start the server, or correct its address in the proxy' }
    return { check: 'delivery', level: 'problem', text: `The server ends the response ${duration(durationMs)} after the headers, and an EventSource reconnects again and again.`, change: 'the route: no `response.end()`, and in Fastify no `return` of a value, while the stream is open' }
  }
  if (durationMs < AT_ONCE_MS) return { check: 'idle', level: 'problem', text: `The connection is cut ${duration(durationMs)} after the headers${firstTextMs === null ? ', before any text' : ''}.`, change: 'what the logs of the server and of the proxy say about this request' }
  if (lastSilenceMs < durationMs / 2 && lastSilenceMs < COMMON_LIMIT_MS / 2) {
    return { check: 'idle', level: 'problem', text: `The connection is cut ${duration(durationMs)} after the headers, although text arrived ${duration(lastSilenceMs)} before: something limits the duration of a request.`, change: 'the limit on the duration of a request, in the proxy or the platform' }
  }
  const expected = announcedMs === null ? '' : `, and the server writes only every ${duration(announcedMs)}`
  const own = announcedMs === null ? '' : `; or in the server: keepAliveIntervalMs: ${Math.max(10, Math.floor(lastSilenceMs / 2))}`
  return { check: 'idle', level: 'problem', text: `The connection is cut after ${duration(lastSilenceMs)} without data${expected}: the idle time-out of ${proxy.name} is shorter.`, change: `${proxy.idle}${own}` }
}

function controlFinding ({ event, data }: ParsedEvent): Finding {
  let said: { reason?: unknown, code?: unknown, message?: unknown, status?: unknown } = {}
  try {
    said = JSON.parse(data) ?? {}
  } catch {}
  if (event === 'sse:error') return { check: 'status', level: 'problem', text: `The server refuses the stream for now: ${printable([said.code, said.message].filter(value => typeof value === 'string').join(', '))}.`, change: 'the limits of the server, or what its log says' }
  if (event === 'sse:end') return { check: 'delivery', level: 'ok', text: `The run ends with the status ${printable(String(said.status))}.` }
  return { check: 'delivery', level: 'note', text: `The server closes the stream with the reason ${printable(String(said.reason))}.`, change: 'docs/reference/close-reasons.md explains the reason' }
}
