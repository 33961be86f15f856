import type { Failure } from './exchange.js'
import { printable, type Finding } from './finding.js'
import type { Proxy } from './proxy.js'

const CERTIFICATE = /CERT|SIGNATURE|ERR_TLS_CERT/
const UNNAMED = ['ENOTFOUND', 'EAI_AGAIN']

/** Returns the finding about a request without an answer. */
export function checkConnection (url: URL, { failure, code, message }: Failure, proxy: Proxy): Finding {
  const problem = (text: string, change: string): Finding => ({ check: 'connection', level: 'problem', text, change })
  if (failure === 'silent') {
    return problem(`The connection is accepted, but there is ${message}: the server sends no headers, or ${proxy.name} buffers the response.`, `${proxy.buffering}${proxy.name === 'nginx' ? '' : '   in the server: response.flushHeaders()'}`)
  }
  if (code === 'ECONNREFUSED') return problem(`Nothing listens at ${url.host}.`, 'start the server, or correct the host and the port of the URL')
  if (UNNAMED.includes(code)) return problem(`The name ${url.hostname} has no address.`, 'the host of the URL')
  if (CERTIFICATE.test(code)) return problem(`Browsers refuse the certificate: ${printable(message)}.`, 'a certificate for this host   # for one of your own: NODE_EXTRA_CA_CERTS=ca.pem')
  if (code === 'EPROTO' || code.startsWith('ERR_SSL')) return problem(`The server at ${url.host} does not speak TLS.`, 'http:// instead of https://')
  if (code === 'HPE_HEADER_OVERFLOW') return problem('The headers are larger than browsers accept.', 'what the server and the proxy write into the headers, such as cookies')
  if (code.startsWith('HPE_')) return problem(`The answer is not HTTP: ${printable(message)}.`, 'the port of the URL; for a server that speaks TLS, https:// instead of http://')
  if (code === 'ECONNRESET') return problem('The connection is closed before an answer.', 'what the logs of the server and of the proxy say about this request; for a server that speaks TLS, https://')
  return problem(`There is no answer: ${printable(message)}.`, 'the address, or the network between here and the server')
}
