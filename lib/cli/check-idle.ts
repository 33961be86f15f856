import { checkFarewell } from './check-end.js'
import { duration, type Finding } from './finding.js'
import type { Observation } from './observation.js'
import type { Proxy } from './proxy.js'

/** A stream that ends earlier has ended at once. */
const AT_ONCE_MS = 500
/** Common proxies cut a connection that is silent for a minute. */
const COMMON_LIMIT_MS = 55_000
/** After a shorter silence a server may still send keep-alives. */
const USUAL_INTERVAL_MS = 30_000
const keepAlive = (ms: number): string => `setInterval(() => response.write(': keep-alive\\n\\n'), ${ms})`

/** Returns the finding about whether a silent connection stays open. */
export function checkIdle (seen: Observation, proxy: Proxy): Finding {
  const { ending, durationMs, announcedMs, keepAliveMs, longestSilenceMs, events } = seen
  if (ending === 'cut' && checkFarewell(seen) === null) return checkCut(seen, proxy)
  const rare = (text: string, change: string): Finding => ({ check: 'idle', level: 'warning', text: `${text}, and common proxies cut a connection after 60 s without data.`, change })
  if (announcedMs !== null && announcedMs > COMMON_LIMIT_MS) return rare(`The server sends keep-alives every ${duration(announcedMs)}`, 'keepAliveIntervalMs: 15000')
  if (keepAliveMs !== null && keepAliveMs > COMMON_LIMIT_MS) return rare(`Keep-alives arrive every ${duration(keepAliveMs)}`, keepAlive(15_000))
  if (keepAliveMs !== null) return { check: 'idle', level: 'ok', text: `The connection lives through ${duration(keepAliveMs)} of silence, the time between keep-alives.` }
  if (announcedMs === null && longestSilenceMs >= USUAL_INTERVAL_MS) return rare(`No keep-alive arrives within ${duration(longestSilenceMs)} of silence`, keepAlive(15_000))
  const skipped = (text: string, change: string): Finding => ({ check: 'idle', level: 'skipped', text, change })
  if (ending !== 'open') return skipped(`The stream ends after ${duration(durationMs)}, so no keep-alive was seen.`, 'the URL of a stream that stays open')
  if (events > 0 && longestSilenceMs < durationMs / 2) {
    const silence = announcedMs === null ? 'a silent connection' : `a connection with ${duration(announcedMs)} of silence, the time between keep-alives,`
    return skipped(`Events leave at most ${duration(longestSilenceMs)} of silence: whether ${silence} is cut was not seen.`, 'the URL of a stream with fewer events, or a longer --watch')
  }
  const seconds = Math.max(70, Math.ceil(2.5 * (announcedMs ?? 0) / 1_000))
  return skipped(`No keep-alive arrives within ${duration(durationMs)}: whether a silent connection is cut was not seen.`, `--watch ${seconds}   # seconds`)
}

function checkCut ({ durationMs, lastSilenceMs, announcedMs, firstTextMs }: Observation, proxy: Proxy): Finding {
  const problem = (text: string, change: string): Finding => ({ check: 'idle', level: 'problem', text, change })
  if (durationMs < AT_ONCE_MS) return problem(`The connection is cut ${duration(durationMs)} after the headers${firstTextMs === null ? ', before any text' : ''}.`, 'what the logs of the server and of the proxy say about this request')
  if (lastSilenceMs < durationMs / 2 && lastSilenceMs < COMMON_LIMIT_MS / 2) {
    return problem(`The connection is cut ${duration(durationMs)} after the headers, although text arrived ${duration(lastSilenceMs)} before: something limits the duration of a request.`, 'the limit on the duration of a request, in the proxy or the platform')
  }
  const expected = announcedMs === null ? '' : `, and the server writes only every ${duration(announcedMs)}`
  const halfMs = Number((lastSilenceMs / 2).toPrecision(2))
  const own = announcedMs === null ? keepAlive(halfMs) : `keepAliveIntervalMs: ${halfMs}`
  return problem(`The connection is cut after ${duration(lastSilenceMs)} without data${expected}: the idle time-out of ${proxy.name} is too short.`, `${proxy.idle(Math.max(60, Math.ceil((announcedMs ?? 0) / 500)))}   # or in the server: ${own}`)
}
