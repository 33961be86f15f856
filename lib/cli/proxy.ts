import type { Answer } from './answer.js'

/** What stands between here and the server, and which of its lines decides what. */
export interface Proxy {
  /** For a sentence. */
  readonly name: string
  /** Turns buffering off. */
  readonly buffering: string
  /** Lets a stream be silent for this time. */
  readonly idle: (seconds: number) => string
}

const NGINX: Proxy = { name: 'nginx', buffering: 'proxy_buffering off;', idle: seconds => `proxy_read_timeout ${seconds}s;` }
/** haproxy and most load balancers do not name themselves. */
const UNKNOWN: Proxy = {
  name: 'a proxy between here and the server',
  buffering: 'proxy_buffering off;   # nginx',
  idle: seconds => `timeout server ${seconds}s   # haproxy; nginx: proxy_read_timeout ${seconds}s;`
}

/** Returns the proxy that an answer names. */
export function proxyOf (answer: Answer | null): Proxy {
  return answer !== null && /^(?:nginx|openresty)\b/i.test(answer.header('server')) ? NGINX : UNKNOWN
}
