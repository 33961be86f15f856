import type { Answer } from './answer.js'
import { duration, printable, type Finding } from './finding.js'
import type { Observation } from './observation.js'
import type { Proxy } from './proxy.js'

/** Returns the finding about a stream that is only a refusal; null for other streams. */
export function checkRefusal ({ ending, events, firstEvent, retryMs, announcedMs }: Observation, proxy: Proxy): Finding | null {
  if (ending === 'open' || announcedMs !== null) return null
  if (events === 0) {
    if (ending !== 'end' || retryMs === null) return null
    return { check: 'status', level: 'problem', text: `The answer only asks to reconnect after ${duration(retryMs)}: ${proxy.name} reaches no server.`, change: 'start the server, or correct its address in the proxy' }
  }
  if (firstEvent?.event !== 'sse:error') return null
  const { code, message } = dataOf(firstEvent.data)
  return { check: 'status', level: 'problem', text: `The server refuses the stream for now: ${printable([code, message].filter(value => typeof value === 'string').join(', '))}.`, change: 'the limits of the server, or what its log says' }
}

/** Returns the finding about the last event of a stream, if it says why the stream ends; null if it does not. */
export function checkFarewell ({ ending, lastEvent }: Observation): Finding | null {
  if (ending === 'open' || lastEvent === null) return null
  const { reason, status } = dataOf(lastEvent.data)
  if (lastEvent.event === 'sse:end') return { check: 'delivery', level: 'ok', text: `The run ends with the status ${printable(String(status))}.` }
  if (lastEvent.event === 'sse:close') return { check: 'delivery', level: 'note', text: `The server closes the stream with the reason ${printable(String(reason))}.`, change: 'docs/reference/close-reasons.md explains the reason' }
  return null
}

/** Returns the finding about a response that the server has ended. */
export function checkEnd (answer: Answer, { durationMs }: Observation): Finding {
  const length = answer.header('content-length')
  const end = length === '' ? `The server ends the response ${duration(durationMs)} after the headers` : `The response has the header content-length, and ends after ${printable(length)} bytes`
  const change = length === '' ? 'the route: no `response.end()`, and in Fastify no `return` of a value, while the stream is open' : 'no header content-length: a stream has no length'
  return { check: 'delivery', level: 'problem', text: `${end}, and an EventSource reconnects again and again.`, change }
}

function dataOf (text: string): { readonly code?: unknown, readonly message?: unknown, readonly reason?: unknown, readonly status?: unknown } {
  try {
    return JSON.parse(text) ?? {}
  } catch {
    return {}
  }
}
