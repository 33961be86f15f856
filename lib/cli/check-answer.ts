import type { Answer } from './exchange.js'
import { duration, printable, type Finding } from './finding.js'

/** What an answer that is not a stream says: a refusal of this package is JSON. */
interface Refusal {
  readonly code: string
  readonly message: string
}

const CHANGES: Readonly<Record<number, string>> = {
  401: "--header 'authorization: Bearer …'   # or --header 'cookie: …'",
  403: "--header 'authorization: Bearer …'   # with the rights of a user who may read the stream",
  404: 'the path of the URL',
  405: 'the method of the route: an EventSource sends GET',
  406: 'the type of the route: it must answer requests with `accept: text/event-stream`',
  429: 'the limits of the server, or the number of streams that are open',
  502: 'the address of the server in the proxy: the proxy cannot reach the server',
  503: 'start the server, or look at its log',
  504: 'the address of the server in the proxy, or its time-out: the server has not answered the proxy'
}

/** Returns the finding about the status of an answer. */
export function checkStatus (answer: Answer, body: string): Finding {
  const { status, headMs } = answer
  if (status === 200) return { check: 'status', level: 'ok', text: `The server answers 200 after ${duration(headMs)}.` }
  if (status === 204) return { check: 'status', level: 'problem', text: 'The server answers 204, after which an EventSource stops for good.', change: 'the route: 204 is for a client that must not reconnect' }
  const { code, message } = refusalOf(answer, body)
  const detail = message === '' ? code : code === '' ? message : `${code}, ${message}`
  return {
    check: 'status',
    level: 'problem',
    text: `The server answers ${status}, after which an EventSource stops for good${detail === '' ? '' : `: ${printable(detail)}`}.`,
    change: CHANGES[status] ?? (status >= 500 ? 'what the log of the server says' : 'the request')
  }
}

function refusalOf (answer: Answer, body: string): Refusal {
  const nothing = { code: '', message: '' }
  if (!/\bjson\b/.test(answer.header('content-type'))) return nothing
  try {
    const { code, message, error } = JSON.parse(body)
    const text = (value: unknown): string => typeof value === 'string' ? value.slice(0, 200) : ''
    return { code: text(code), message: (text(message) || text(error)).replace(/\.$/, '') }
  } catch {
    return nothing
  }
}

/** Returns the finding about the type of an answer with status 200. */
export function checkType (answer: Answer): Finding {
  const type = printable(answer.header('content-type'))
  const change = 'content-type: text/event-stream'
  if (!/^text\/event-stream\s*(?:;|$)/i.test(type)) {
    return { check: 'type', level: 'problem', text: `The answer is ${type === '' ? 'of no type' : type}, not an event stream: an EventSource refuses it.`, change }
  }
  const [, charset = 'utf-8'] = /;\s*charset="?([^";]+)/i.exec(type) ?? []
  if (!/^utf-?8$/i.test(charset.trim())) return { check: 'type', level: 'warning', text: `The type names the charset ${charset}, and clients read UTF-8 all the same.`, change }
  return { check: 'type', level: 'ok', text: `The type is ${type}.` }
}

/** Returns the findings about the headers of a stream. */
export function checkHeaders (answer: Answer): Finding[] {
  return [checkVersion(answer), checkCache(answer), ...answer.cookies.flatMap(cookie => checkCookie(answer.url, cookie))]
}

function checkVersion ({ version, url }: Answer): Finding {
  if (version === '2') return { check: 'version', level: 'ok', text: 'The server speaks HTTP/2: many streams share one connection.' }
  const text = `The server speaks HTTP/${version}: a browser opens at most six streams to it, in all tabs together.`
  const change = 'http2 on;   # nginx, beside `listen 443 ssl;`'
  // Without TLS no browser speaks HTTP/2, and a server on the own machine seldom has TLS.
  return { check: 'version', level: url.protocol === 'https:' ? 'warning' : 'note', text, change }
}

function checkCache (answer: Answer): Finding {
  const cached = answer.header('age') !== '' || /\bhit\b/i.test(answer.header('x-cache'))
  const control = answer.header('cache-control').toLowerCase()
  const change = 'cache-control: no-cache, no-store, no-transform'
  if (cached) return { check: 'cache', level: 'problem', text: 'A cache has answered instead of the server.', change }
  if (!/\bno-store\b|\bno-cache\b/.test(control)) return { check: 'cache', level: 'warning', text: `Caches may keep the stream, and send it to other users: the header cache-control is ${control === '' ? 'missing' : printable(control)}.`, change }
  return { check: 'cache', level: 'ok', text: `Caches do not keep the stream: cache-control is ${printable(control)}.` }
}

function checkCookie (url: URL, cookie: string): Finding[] {
  const name = printable(cookie.slice(0, cookie.indexOf('=')))
  const has = (attribute: RegExp): boolean => attribute.test(cookie)
  if (url.protocol === 'https:' && !has(/;\s*secure\b/i)) return [{ check: 'cookies', level: 'warning', text: `The cookie ${name} is sent without Secure, so also over HTTP without TLS.`, change: `set-cookie: ${name}=…; Secure; HttpOnly; SameSite=Lax` }]
  if (has(/;\s*samesite=none\b/i) && !has(/;\s*secure\b/i)) return [{ check: 'cookies', level: 'warning', text: `Browsers discard the cookie ${name}: SameSite=None needs Secure.`, change: `set-cookie: ${name}=…; SameSite=None; Secure` }]
  return [{ check: 'cookies', level: 'ok', text: `The server sets the cookie ${name}.` }]
}
