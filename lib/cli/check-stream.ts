import type { Answer } from './answer.js'
import { checkDelivery } from './check-delivery.js'
import { checkRefusal } from './check-end.js'
import { checkFormat } from './check-format.js'
import { checkIdle } from './check-idle.js'
import { duration, SLOW_MS, type Finding } from './finding.js'
import type { Observation } from './observation.js'
import type { Proxy } from './proxy.js'

const MIN_RETRY_MS = 100

/** Returns the findings about a stream that was watched. */
export function checkStream (answer: Answer, seen: Observation, proxy: Proxy): Finding[] {
  const refusal = checkRefusal(seen, proxy)
  if (refusal !== null) return [refusal]
  const format = checkFormat(answer, seen)
  if (seen.ending === 'garbled') return format
  return [...checkOpening(seen, proxy), ...checkRetry(seen), ...format, checkDelivery(answer, seen, proxy), checkIdle(seen, proxy)]
}

function checkOpening ({ firstTextMs, durationMs, announcedMs, ending }: Observation, proxy: Proxy): Finding[] {
  const change = "response.write(': open\\n\\n')   # at the beginning of each stream, to tell which"
  if (firstTextMs === null) {
    if (ending !== 'open') return []
    return [{ check: 'opening', level: 'warning', text: `Nothing follows the headers within ${duration(durationMs)}: the server writes nothing, or ${proxy.name} buffers it.`, change }]
  }
  if (firstTextMs < SLOW_MS) return [{ check: 'opening', level: 'ok', text: `The first text arrives ${duration(firstTextMs)} after the headers.` }]
  const late = `The first text arrives only ${duration(firstTextMs)} after the headers`
  if (announcedMs !== null) return [{ check: 'opening', level: 'problem', text: `${late}, and the server writes both at once: ${proxy.name} buffers the response.`, change: proxy.buffering }]
  return [{ check: 'opening', level: 'warning', text: `${late}: the server writes nothing before, or ${proxy.name} buffers it.`, change }]
}

function checkRetry ({ retryMs }: Observation): Finding[] {
  if (retryMs === null || retryMs >= MIN_RETRY_MS) return []
  return [{ check: 'retry', level: 'problem', text: `The reconnection time is ${retryMs} ms: clients of a server that is down reconnect without a pause.`, change: 'a line `retry: 3000` at the beginning of each stream' }]
}
