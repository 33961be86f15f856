import type { Answer } from './answer.js'
import { duration, printable, SLOW_MS, type Finding } from './finding.js'
import { proxyOf } from './proxy.js'

const CHANGES: Readonly<Record<number, string>> = {
  400: 'the request; for a server that speaks TLS, https://',
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
  const { status, headMs } = answer.head
  if (status === 200 && headMs < SLOW_MS) return { check: 'status', level: 'ok', text: `The server answers 200 after ${duration(headMs)}.` }
  if (status === 200) {
    const { name, buffering } = proxyOf(answer)
    const text = `The server answers 200 only after ${duration(headMs)}, which each client waits whenever it connects: the route works before it sends its headers, or ${name} holds them back.`
    return { check: 'status', level: 'warning', text, change: `the route: reply.sse(), or response.flushHeaders(), before slow work; or in the proxy: ${buffering}` }
  }
  if (status === 204) return { check: 'status', level: 'problem', text: 'The server answers 204, after which an EventSource stops for good.', change: 'the route: 204 is for a client that must not reconnect' }
  const detail = detailOf(answer, body)
  return {
    check: 'status',
    level: 'problem',
    text: `The server answers ${status}, after which an EventSource stops for good${detail === '' ? '' : `: ${printable(detail)}`}.`,
    change: CHANGES[status] ?? (status >= 500 ? 'what the log of the server says' : status >= 400 ? 'the request' : 'the route: it must answer 200')
  }
}

/** Returns what an answer of JSON, such as a refusal of this package, says. */
function detailOf (answer: Answer, body: string): string {
  if (!/\bjson\b/.test(answer.header('content-type'))) return ''
  try {
    const { code, message, error } = JSON.parse(body)
    return [code, message ?? error].filter(part => typeof part === 'string' && part !== '').map(part => part.slice(0, 200)).join(', ').replace(/\.$/, '')
  } catch {
    return ''
  }
}

/** Returns the finding about the type of an answer with status 200. */
export function checkType (answer: Answer): Finding {
  const type = printable(answer.header('content-type'))
  if (!/^text\/event-stream\s*(?:;|$)/i.test(type)) {
    const change = 'content-type: text/event-stream'
    const isPage = /^text\/html\b/i.test(type)
    return { check: 'type', level: 'problem', text: `The answer is ${type === '' ? 'of no type' : type}, not an event stream: an EventSource refuses it.`, change: isPage ? 'the path of the URL, or --header with credentials: the answer is a page' : change }
  }
  const [, charset = 'utf-8'] = /;\s*charset="?([^";]+)/i.exec(type) ?? []
  if (!/^utf-?8$/i.test(charset.trim())) return { check: 'type', level: 'warning', text: `The type names the charset ${charset}, and clients read UTF-8 all the same.`, change: 'content-type: text/event-stream' }
  return { check: 'type', level: 'ok', text: `The type is ${type}.` }
}

/** Returns the findings about the headers of a stream. */
export function checkHeaders (answer: Answer): Finding[] {
  return [checkVersion(answer), checkCache(answer), ...answer.cookies.map(cookie => checkCookie(answer.head.url, cookie))]
}

function checkVersion ({ head: { version, url } }: Answer): Finding {
  if (version === '2') return { check: 'version', level: 'ok', text: 'The server speaks HTTP/2: many streams share one connection.' }
  const text = `The server speaks HTTP/${version}: a browser opens at most six streams to it, in all tabs together.`
  const change = 'http2 on;   # nginx, beside `listen 443 ssl;`'
  // Without TLS no browser speaks HTTP/2, and a server on the own machine seldom has TLS.
  return { check: 'version', level: url.protocol === 'https:' ? 'warning' : 'note', text, change }
}

function checkCache (answer: Answer): Finding {
  // Caches write `Age: 0` into an answer that they have just received.
  const cached = Number(answer.header('age')) > 0 || /\bhit\b/i.test(answer.header('x-cache'))
  const control = answer.header('cache-control').toLowerCase()
  const change = 'cache-control: no-cache, no-store, no-transform'
  if (cached) return { check: 'cache', level: 'problem', text: 'A cache has answered instead of the server.', change }
  if (!/\b(?:no-store|no-cache|private)\b/.test(control)) return { check: 'cache', level: 'warning', text: `Caches may keep the stream, and send it to other users: the header cache-control is ${control === '' ? 'missing' : printable(control)}.`, change }
  return { check: 'cache', level: 'ok', text: `Caches do not keep the stream: cache-control is ${printable(control)}.` }
}

function checkCookie (url: URL, cookie: string): Finding {
  const name = printable(cookie.split('=', 1)[0]!)
  const has = (attribute: RegExp): boolean => attribute.test(cookie)
  if (url.protocol === 'https:' && !has(/;\s*secure\b/i)) return { check: 'cookies', level: 'warning', text: `The cookie ${name} is sent without Secure, so also over HTTP without TLS.`, change: `set-cookie: ${name}=…; Secure; HttpOnly; SameSite=Lax` }
  if (has(/;\s*samesite=none\b/i) && !has(/;\s*secure\b/i)) return { check: 'cookies', level: 'warning', text: `Browsers discard the cookie ${name}: SameSite=None needs Secure.`, change: `set-cookie: ${name}=…; SameSite=None; Secure` }
  return { check: 'cookies', level: 'ok', text: `The server sets the cookie ${name}.` }
}
