import type { HttpRequest } from './http.js'

/** Returns whether an Accept header accepts an event stream (RFC 9110, 12.5.1). A missing header accepts everything. */
export function isAcceptable (accept: string | undefined): boolean {
  if (accept === undefined || accept === 'text/event-stream' || accept === '*/*' || accept.trim() === '') return true
  let best = -1
  let quality = 0
  for (const range of accept.split(',')) {
    const [type, ...parameters] = range.split(';').map(part => part.trim().toLowerCase())
    const precision = ['*/*', 'text/*', 'text/event-stream'].indexOf(type!)
    if (precision <= best) continue
    best = precision
    const q = parameters.find(parameter => parameter.startsWith('q='))
    quality = q === undefined ? 1 : Number(q.slice(2))
  }
  return quality > 0
}

/** Returns whether an Accept header names `text/event-stream` and accepts it, as every EventSource does. Wildcards do not count. */
export function namesEventStream (accept: string | undefined): boolean {
  return accept !== undefined && /\btext\/event-stream\b/i.test(accept) && isAcceptable(accept)
}

/** Returns the response headers of an event stream. */
export function streamHeaders (request: HttpRequest): Record<string, string> {
  const headers: Record<string, string> = {
    'content-type': 'text/event-stream',
    // `no-transform` keeps proxies from compressing and buffering. Without the rest, a cache served one user's events to another.
    'cache-control': 'private, no-cache, no-store, no-transform',
    'x-accel-buffering': 'no'
  }
  if (request.httpVersionMajor === 1) headers['connection'] = request.httpVersionMinor === 0 || /\bclose\b/i.test(request.headers.connection ?? '') ? 'close' : 'keep-alive'
  return headers
}
