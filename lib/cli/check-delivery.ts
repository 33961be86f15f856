import type { Answer } from './answer.js'
import { checkEnd, checkFarewell } from './check-end.js'
import { duration, type Finding } from './finding.js'
import { latestMs, type Observation } from './observation.js'
import type { Proxy } from './proxy.js'

/** How often something must be seen. */
const ENOUGH = 3

/** Returns the finding about whether text arrives when it is written. */
export function checkDelivery (answer: Answer, seen: Observation, proxy: Proxy): Finding {
  const farewell = checkFarewell(seen)
  if (farewell !== null) return farewell
  const { ending, announcedMs, longestSilenceMs, keepAliveMs, bunches, singles, lumps, torn } = seen
  if (ending === 'end') return checkEnd(answer, seen)
  const buffered = (text: string): Finding => ({ check: 'delivery', level: 'problem', text: `${text}: ${proxy.name} buffers the response.`, change: proxy.buffering })
  if (announcedMs !== null && longestSilenceMs > latestMs(announcedMs)) return buffered(`Nothing arrives for ${duration(longestSilenceMs)}, although the server writes at least every ${duration(announcedMs)}`)
  if (bunches > 1) return buffered('Keep-alives arrive several at once')
  // A server writes whole events. What ends anywhere, and goes on much later, comes from a buffer that was full.
  if (torn >= ENOUGH && lumps >= ENOUGH) return buffered('Events arrive several at once, and the last of them in two parts')
  if (keepAliveMs !== null) return { check: 'delivery', level: 'ok', text: 'Keep-alives arrive one by one.' }
  if (singles >= ENOUGH && singles > lumps) return { check: 'delivery', level: 'ok', text: 'Events arrive one by one.' }
  const text = lumps > 0 ? 'Events arrive several at once, and do not tell when they were written: whether something delays them was not seen.' : 'Too little arrives to see whether something delays it.'
  return { check: 'delivery', level: 'skipped', text }
}
