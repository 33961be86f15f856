import type { Answer } from './answer.js'
import type { Failure } from './exchange.js'
import { duration, printable, SLOW_MS, type Finding } from './finding.js'
import type { Proxy } from './proxy.js'

const CERTIFICATE = /CERT|SIGNATURE/
/** Errors about the first bytes, which are not those of TLS. */
const NO_TLS = /WRONG_VERSION|PACKET_LENGTH/
const UNNAMED = ['ENOTFOUND', 'EAI_AGAIN']

/** Returns the finding about a connection that takes long. */
export function checkConnectTime ({ head: { connectMs } }: Answer): Finding[] {
  if (connectMs < SLOW_MS) return []
  return [{ check: 'connection', level: 'warning', text: `The connection takes ${duration(connectMs)}, which each client waits whenever it connects.`, change: 'the name server, the network or TLS: what is slow between here and the server' }]
}

/** Returns the finding about a request without an answer. */
export function checkConnection (url: URL, { failure, code, message }: Failure, proxy: Proxy): Finding {
  const problem = (text: string, change: string): Finding => ({ check: 'connection', level: 'problem', text, change })
  if (failure === 'silent') {
    return problem(`The connection is accepted, but there is ${message}: the server sends no headers, or ${proxy.name} buffers the response.`, `${proxy.buffering}${proxy.name === 'nginx' ? '' : '   # or in the server: response.flushHeaders()'}`)
  }
  if (code === 'ECONNREFUSED') return problem(`Nothing listens at ${url.host}.`, 'start the server, or correct the host and the port of the URL')
  if (UNNAMED.includes(code)) return problem(`The name ${url.hostname} has no address.`, 'the host of the URL')
  if (NO_TLS.test(code)) return problem(`The server at ${url.host} does not speak TLS.`, 'http:// instead of https://')
  if (code === 'EPROTO' || code.startsWith('ERR_SSL')) return problem(`The server and the client do not agree on TLS: ${printable(message)}.`, 'the versions of TLS, the names and the client certificates that the server accepts')
  if (CERTIFICATE.test(code)) return problem(`Browsers refuse the certificate: ${printable(message)}.`, 'a certificate for this host   # for one of your own: NODE_EXTRA_CA_CERTS=ca.pem')
  if (code === 'HPE_HEADER_OVERFLOW') return problem('The headers are larger than browsers accept.', 'what the server and the proxy write into the headers, such as cookies')
  if (code.startsWith('HPE_')) return problem(`The answer is not HTTP: ${printable(message)}.`, 'the port of the URL; for a server that speaks TLS, https:// instead of http://')
  if (code === 'ECONNRESET') return problem('The connection is closed before an answer.', 'what the logs of the server and of the proxy say about this request; or the scheme of the URL, http:// or https://')
  return problem(`There is no answer: ${printable(message)}.`, 'the address, or the network between here and the server')
}
