import { request as httpRequest, type IncomingMessage } from 'node:http'
import type { SSEUser } from '../access/authentication.js'
import { TestMisuse, TestRefused, TestTimeout } from '../errors.js'
import { quote } from '../util/quote.js'
import { alternatives } from '../util/suggestion.js'
import { whenTestEnds, type TestContext } from './cleanup.js'
import { connectTo, type Link, type Target } from './link.js'
import { TestStream, type ReconnectOptions } from './test-stream.js'

/** Options of `openStream()`, all optional. */
export interface OpenStreamOptions {
  /**
   * The authenticated user, or its id. `authHandler` and `authStrategies` are not called; `authorizeSubscription` and limits apply. Only
   * for a Fastify instance or server of this process: a request from a network cannot set it. Absent: the application authenticates the
   * request.
   */
  user?: string | SSEUser
  /** Headers of the request, in addition to `accept: text/event-stream`, which they can replace. */
  headers?: Record<string, string>
  /** Cursor to resume after, sent as `Last-Event-ID`. Absent or null: none. */
  lastEventId?: string | null
  /** Method of the request. Default `GET`, or `POST` with a `body`. */
  method?: string
  /** Body of the request. A string or Uint8Array is sent unchanged, any other value as JSON. Absent: no body. */
  body?: unknown
  /**
   * Whether to connect by TCP. `true`: an application that does not listen starts to listen on a free port of 127.0.0.1. `false`: in
   * memory, even if the application listens. Absent: by TCP if the application listens. A server with TLS always uses TCP.
   */
  socket?: boolean
  /**
   * Read rate of the client in bytes per second. Exact in memory. Over TCP, the kernel buffers several megabytes first. Absent: no limit.
   */
  readRate?: number
  /** Deadline of `openStream()` and of each wait of the stream, in milliseconds. Default 5,000. */
  timeoutMs?: number
  /**
   * Whether `openStream()` also resolves if the response is not a stream. `status`, `headers` and `body` then have the response. Default
   * false.
   */
  allowRefusal?: boolean
  /**
   * The test that the stream belongs to. The stream is closed when the test ends, and keeps the process alive until then. Absent: close
   * the stream yourself, for example with `await using`.
   */
  test?: TestContext
}

const OPTIONS: readonly (keyof OpenStreamOptions)[] = ['user', 'headers', 'lastEventId', 'method', 'body', 'socket', 'readRate', 'timeoutMs', 'allowRefusal', 'test']

/**
 * Opens an event stream of an application under test. Resolves when the server has registered the connection: the stream receives all
 * later broadcasts. If its cursor is no longer in the history, the stream receives the broadcasts that follow its `sse:gap`. A stream
 * with the option `test` keeps the process alive until it ends; a stream without it does not.
 * @param app the Fastify instance, a server of `node:http` or `node:https`, or the base URL of a server
 * @param url path and query of the route
 * @throws SSE_ERR_TEST_REFUSED, with `statusCode` and `body`, when the response is not a stream; SSE_ERR_TEST_TIMEOUT without a response
 * within `timeoutMs`; SSE_ERR_TEST_MISUSE
 * @example
 * ```ts
 * const stream = await openStream(app, '/events', { user: 'ada', test: t })
 * await app.sse.broadcastToUsers({ event: 'paid', data: { total: 12 } }, ['ada'])
 * assert.deepEqual((await stream.next('paid')).json, { total: 12 })
 * ```
 */
export async function openStream (app: Target, url: string, options: OpenStreamOptions = {}): Promise<TestStream> {
  for (const name of Object.keys(options)) if (!(OPTIONS as readonly string[]).includes(name)) throw new TestMisuse(`openStream() has no option ${quote(name)}${alternatives(name, OPTIONS)}`)
  const { timeoutMs = 5_000, readRate = Infinity, lastEventId = null } = options
  const { method, path, headers, body } = toRequest(url, options)
  const label = `${method} ${path}`
  const link = await connectTo(app, options)
  whenTestEnds(options.test, () => { link.socket.destroy() })
  // Keeps the process alive: the sockets and the timers of the server are unreferenced.
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

/** Sends the request. Resolves when the headers of the response are received. */
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

/** Waits for the first block of the stream, which the server writes after it has registered the connection. */
async function opened (stream: TestStream, label: string, { method, allowRefusal = false }: OpenStreamOptions): Promise<void> {
  if (method === 'HEAD' || !stream.isStream) await stream.ended
  else await stream.comment()
  if (stream.isStream && !isRefusal(stream)) return
  if (!stream.isStream && !allowRefusal) throw new TestRefused(label, describe(stream.status, stream.body, stream.headers['content-type']), stream.status, stream.body, stream.headers)
  if (allowRefusal) return
  const { json } = stream.events[0]!
  throw new TestRefused(label, `by a stream that ends, ${json?.code ?? ''} ${json?.message ?? ''}`, stream.status, json, stream.headers)
}

/** Returns whether the response is the short stream that refuses a client that can retry: see the option `refusals`. */
function isRefusal ({ comments, events }: TestStream): boolean {
  return comments.length === 0 && events[0]?.event === 'sse:error'
}

function describe (status: number, body: unknown, type: unknown): string {
  const { code = '', message = '' } = typeof body === 'object' && body !== null ? body as { code?: string, message?: string } : {}
  if (status === 200) return `status 200 with content type ${JSON.stringify(type ?? '')}, not an event stream`
  return `status ${status} ${code} ${message}`.trimEnd()
}
