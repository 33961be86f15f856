import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import fastifyCookie from '@fastify/cookie'
import fastifyStatic from '@fastify/static'
import fastify, { type FastifyInstance } from 'fastify'
import adminPage from '../lib/admin/index.js'
import ssePlugin from '../lib/index.js'
import { answerRoutes } from './answers.js'
import { Board } from './board.js'
import { chatRoutes } from './chat.js'
import { clientRoute } from './client-file.js'
import { events } from './events.js'
import { noticeRoutes } from './notices.js'
import { publish } from './publisher.js'
import { Roster } from './roster.js'
import { allowedHosts, allowSameOrigin } from './same-origin.js'
import { COOKIE, sessionRoutes, Sessions, type Claims } from './sessions.js'
import { streamRoutes } from './streams.js'
import { findUser, mayHear } from './users.js'

/** Options of the app. */
export interface Options {
  /** Path of a file whose end the board shows. Absent: the board shows the requests of this app. */
  logFile?: string
  /** Path of a file that keeps the sign-ins. Absent: a restart signs out all users. */
  sessionFile?: string
  /** Allowed host names beside those of loopback. Default: none. */
  hosts?: readonly string[]
  /** Whether Fastify logs to standard output. Default false. */
  logger?: boolean
}

const DRAIN_MS = 1_000
const PAGE_POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

/** Creates the app, which does not listen yet. */
export async function build ({ logFile, sessionFile, hosts = [], logger = false }: Options = {}): Promise<FastifyInstance> {
  const app = fastify({ logger, ajv: { customOptions: { removeAdditional: false, coerceTypes: 'array' } } })
  allowSameOrigin(app, hosts)
  await app.register(fastifyCookie)
  const sessions = new Sessions(sessionFile ?? null)
  const board = new Board(sessions, logFile ?? null)

  await app.register(ssePlugin, {
    events,
    requireAuthentication: true,
    authHandler: ({ token, cookies }) => {
      const caller = sessions.identify({ token, cookie: cookies[COOKIE] })
      if (caller === null) return null
      const { user, signIn } = caller
      const claims: Claims = { signIn }
      return { userId: user.id, claims, expiresAt: signIn?.expiresAt ?? null }
    },
    authorizeSubscription: ({ userId, subscriptionId }) => {
      const user = findUser(userId ?? '')
      return user !== undefined && mayHear(user, subscriptionId)
    },
    keepAliveIntervalMs: 15_000,
    retryMs: 1_000,
    drainMs: DRAIN_MS,
    history: { maxEvents: 10_000, maxAgeMs: 300_000 },
    maxConnectionsPerUser: 20
  })

  app.addHook('onSend', async (request, reply) => {
    reply.header('content-security-policy', PAGE_POLICY)
    reply.header('x-content-type-options', 'nosniff')
    reply.header('referrer-policy', 'no-referrer')
  })

  // Browsers open connections in advance. Without this, an unused connection delays `close()` by a minute.
  app.addHook('preClose', async () => { setTimeout(() => { app.server.closeAllConnections() }, DRAIN_MS).unref() })

  app.addHook('onResponse', async (request, reply) => {
    if (request.method === 'GET') return
    const caller = sessions.find(request)
    board.activity.note(`${caller === null ? '' : `${caller.user.name}: `}${request.method} ${request.url} ${reply.statusCode}, ${Math.ceil(reply.elapsedTime)} ms`)
  })

  const roster = new Roster(app)
  sessionRoutes(app, sessions, board)
  streamRoutes(app, board, roster)
  chatRoutes(app, board)
  noticeRoutes(app, board)
  await answerRoutes(app)
  await app.register(adminPage, { path: '/admin', authorize: request => sessions.find(request)?.user.role === 'admin', actions: true })
  await clientRoute(app)
  await app.register(fastifyStatic, { root: fileURLToPath(new URL('public', import.meta.url)) })
  publish(app, board, roster)
  return app
}

async function main (): Promise<void> {
  const file = process.argv[2]
  const sessionFile = process.env.SESSION_FILE
  const app = await build({
    logger: process.env.LOG === '1',
    hosts: allowedHosts(process.env),
    ...(file === undefined ? {} : { logFile: resolve(file) }),
    ...(sessionFile === undefined ? {} : { sessionFile: resolve(sessionFile) })
  })
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    // A second signal ends the process immediately.
    process.once(signal, () => { app.close().catch((error: unknown) => { console.error(error); process.exitCode = 1 }) })
  }
  const url = await app.listen({ host: process.env.HOST || '127.0.0.1', port: Number(process.env.PORT || 3000) })
  console.log(`Operations board: ${url}`)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main().catch((error: Error & { code?: string }) => {
    console.error(error.code === 'EADDRINUSE' ? `${error.message}; choose another port, or any: PORT=0 npm start` : error)
    process.exitCode = 1
  })
}
