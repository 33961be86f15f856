import type { Answer } from './answer.js'
import type { Failure } from './exchange.js'
import { printable, type Finding } from './finding.js'

/** Headers that browsers send without a preflight, and one that is asked for anyway. */
const UNASKED = ['accept', 'accept-encoding', 'accept-language', 'cache-control', 'content-language', 'cookie', 'origin', 'referer', 'user-agent', 'host', 'last-event-id']

/** Returns the finding about what a page of the origin can read. `answer` answers a request with this `Origin`. */
export function checkOrigin (answer: Answer | Failure, origin: string, hasCookies: boolean): Finding {
  const wanted = `access-control-allow-origin: ${origin}`
  if ('failure' in answer) return { check: 'cors', level: 'problem', text: `With the origin ${origin} the server does not answer: ${answer.message}.`, change: 'what the log of the server says' }
  if (answer.head.status === 403) return { check: 'cors', level: 'problem', text: `The server answers 403 to pages of ${origin}.`, change: `allowedOrigins: ['${origin}']   # or the list of origins of another server` }
  const allowed = answer.header('access-control-allow-origin')
  if (allowed === '') return { check: 'cors', level: 'problem', text: `Pages of ${origin} cannot read the stream: access-control-allow-origin is missing.`, change: wanted }
  if (allowed === '*' && hasCookies) return { check: 'cors', level: 'problem', text: `Pages of ${origin} cannot send cookies: with access-control-allow-origin: * browsers refuse the answer.`, change: `${wanted}   # and access-control-allow-credentials: true` }
  if (allowed !== '*' && allowed !== origin) return { check: 'cors', level: 'problem', text: `Pages of ${origin} cannot read the stream: access-control-allow-origin is ${printable(allowed)}.`, change: wanted }
  if (hasCookies && answer.header('access-control-allow-credentials') !== 'true') return { check: 'cors', level: 'problem', text: `Pages of ${origin} cannot send cookies: access-control-allow-credentials is missing.`, change: 'access-control-allow-credentials: true' }
  return { check: 'cors', level: 'ok', text: `Pages of ${origin} can read the stream${hasCookies ? ', with cookies' : ''}.` }
}

/** Returns the finding about the preflight of a `fetch` that resumes. An EventSource sends none. */
export function checkPreflight (answer: Answer | Failure, origin: string, headers: readonly string[]): Finding {
  const failed = (text: string): Finding => ({ check: 'preflight', level: 'warning', text, change: `access-control-allow-headers: ${headers.join(', ')}   # in the answer to OPTIONS, with status 204` })
  if ('failure' in answer) return failed(`A page of ${origin} that uses fetch cannot resume: the server does not answer OPTIONS.`)
  if (answer.head.status < 200 || answer.head.status > 299) return failed(`A page of ${origin} that uses fetch cannot resume: the server answers ${answer.head.status} to OPTIONS.`)
  const allowed = answer.header('access-control-allow-headers').toLowerCase().split(',').map(name => name.trim())
  const missing = headers.filter(name => !allowed.includes(name) && (name === 'authorization' || !allowed.includes('*')))
  if (missing.length > 0) return failed(`A page of ${origin} that uses fetch cannot send ${missing.join(' and ')}.`)
  return { check: 'preflight', level: 'ok', text: `A page of ${origin} that uses fetch can send ${headers.join(' and ')}.` }
}

/** The headers for which a browser sends a preflight. */
export function preflightHeaders (headers: Readonly<Record<string, string>>): string[] {
  return ['last-event-id', ...Object.keys(headers).filter(name => !UNASKED.includes(name))]
}
