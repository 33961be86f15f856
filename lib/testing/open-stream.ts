import { request as httpRequest, type IncomingMessage } from 'node:http'
import type { SSEUser } from '../access/authentication.js'
import { TestRefused, TestTimeout } from '../errors.js'
import { whenTestEnds, type TestContext } from './cleanup.js'
import { connectTo, type Link, type Target } from './link.js'
import { TestStream, type ReconnectOptions } from './test-stream.js'

/** Options of `openStream()`, all optional. */
export interface OpenStreamOptions {
  /**
   * The user of the stream. Neither `authHandler` nor `authStrategies` is asked; `authorizeSubscription` and limits apply. Only for an
   * application or server of this process, and never set by anything that arrives from a network. Default: the application authenticates the request.
   */
  user?: string | SSEUser
  /** Headers of the request. Default `accept: text/event-stream`, as an `EventSource` sends. */
  headers?: Record<string, string>
  /** The cursor to resume after, sent as `Last-Event-ID`. Default: none. */
  lastEventId?: string | null
  /** Method of the request. Default `GET`, with a `body` `POST`. */
  method?: string
  /** Body of the request: text or bytes as they are, anything else as JSON. */
  body?: unknown
  /**
   * Whether to connect by TCP. False: in memory, also when the application listens. True: by TCP; an application that does not listen is
   * made to, on a free port of 127.0.0.1. Default: by TCP when the application listens. A server with TLS always gets a socket.
   */
  socket?: boolean
  /** Bytes per second that the client reads. Exact in memory; over TCP the kernel takes several megabytes first. Default: no limit. */
  readRate?: number
  /** Deadline of `openStream()` and of each wait of the stream, in milliseconds. Default 5,000. */
  timeoutMs?: number
  /** Resolve also when the server answers anything but a stream; `status`, `headers` and `body` have the answer. Default false. */
  allowRefusal?: boolean
  /**
   * The test that the stream belongs to: the stream is closed when the test ends, and keeps the process alive until then. Default: none; then
   * close it yourself, for example by `await using`.
   */
  test?: TestContext
}

/**
 * Opens an event stream of an application under test and resolves once the server has the connection: what is broadcast from then on is
 * received. A client whose cursor has left the history receives what is broadcast after its `sse:gap`. A stream with the option `test`
 * keeps the process alive until it ends, one without does not.
 * @param app the Fastify instance, a server of `node:http` or `node:https`, or the base URL of a server.
 * @param url path and query of the route.
 * @throws SSE_ERR_TEST_REFUSED, with `statusCode` and `body`, when the answer is not a stream; SSE_ERR_TEST_TIMEOUT when there is none
 * within `timeoutMs`; SSE_ERR_TEST_MISUSE.
 */
export async function openStream (app: Target, url: string, options: OpenStreamOptions = {}): Promise<TestStream> {
  const { timeoutMs = 5_000, readRate = Infinity, lastEventId = null } = options
  const { method, path, headers, body } = toRequest(url, options)
  const label = `${method} ${path}`
  const link = await connectTo(app, options)
  whenTestEnds(options.test, () => { link.socket.destroy() })
  // Nothing else does: the sockets are unreferenced, and so are the timers of the server.
  const alive = options.test === undefined ? undefined : setInterval(() => {}, 2 ** 30)
  try {
    const response = await answer(link, { method, path, headers: { host: link.host, connection: 'keep-alive', ...headers } }, body, label, timeoutMs)
    const stream = new TestStream(link, response, {
      label,
      timeoutMs,
      readRate,
      onEnd: () => clearInterval(alive),
      reopen: ({ app: other = app, ...change }: ReconnectOptions) => openStream(other, url, { ...options, ...change })
    }, lastEventId ?? '')
    whenTestEnds(options.test, () => stream.close())
    await opened(stream, label, options)
    return stream
  } catch (error) {
    clearInterval(alive)
    link.socket.destroy()
    throw error
  }
}

interface Request {
  method: string
  path: string
  headers: Record<string, string>
  body: string | Uint8Array | null
}

function toRequest (url: string, { headers = {}, lastEventId, method, body }: OpenStreamOptions): Request {
  const given = Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]))
  const isText = typeof body === 'string' || body instanceof Uint8Array
  const bytes = body === undefined ? null : isText ? body : JSON.stringify(body)
  return {
    method: method ?? (bytes === null ? 'GET' : 'POST'),
    path: url,
    headers: {
      accept: 'text/event-stream',
      ...(typeof lastEventId === 'string' && { 'last-event-id': lastEventId }),
      ...(bytes !== null && { 'content-length': String(Buffer.byteLength(bytes)), ...(!isText && { 'content-type': 'application/json' }) }),
      ...given
    },
    body: bytes
  }
}

/** Sends the request. Resolves with the head of the answer. */
function answer (link: Link, request: { method: string, path: string, headers: Record<string, string> }, body: Request['body'], label: string, timeoutMs: number): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new TestTimeout(timeoutMs, `an answer to ${label}: the server has sent no headers`)), timeoutMs)
    const sent = httpRequest({ ...request, createConnection: () => link.socket as never })
    sent.on('response', response => {
      clearTimeout(timer)
      resolve(response)
    })
    sent.on('error', error => {
      clearTimeout(timer)
      reject(error)
    })
    sent.end(body)
  })
}

/** Waits for what proves that the server has the connection: the first block of the stream is written after it is registered. */
async function opened (stream: TestStream, label: string, { method, allowRefusal = false }: OpenStreamOptions): Promise<void> {
  if (method === 'HEAD' || !stream.isStream) await stream.ended
  else await stream.comment()
  if (stream.isStream && !isRefusal(stream)) return
  if (!stream.isStream && !allowRefusal) throw new TestRefused(label, describe(stream.status, stream.body, stream.headers['content-type']), stream.status, stream.body, stream.headers)
  if (allowRefusal) return
  const { json } = stream.events[0]!
  throw new TestRefused(label, `by a stream that ends, ${json?.code ?? ''} ${json?.message ?? ''}`, stream.status, json, stream.headers)
}

/** Whether the answer is the short stream that a client that may retry is refused with: see the option `refusals`. */
function isRefusal ({ comments, events }: TestStream): boolean {
  return comments.length === 0 && events[0]?.event === 'sse:error'
}

function describe (status: number, body: unknown, type: unknown): string {
  const { code = '', message = '' } = typeof body === 'object' && body !== null ? body as { code?: string, message?: string } : {}
  if (status === 200) return `status 200 with content type ${JSON.stringify(type ?? '')}, not an event stream`
  return `status ${status} ${code} ${message}`.trimEnd()
}
