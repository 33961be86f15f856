import { basename, resolve } from 'node:path'
import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import fastifyCookie from '@fastify/cookie'
import fastifyStatic from '@fastify/static'
import fastify, { type FastifyInstance } from 'fastify'
import ssePlugin from '../lib/index.js'
import { Board } from './board.js'
import { chatRoutes } from './chat.js'
import { events } from './events.js'
import { noticeRoutes } from './notices.js'
import { publish } from './publisher.js'
import { Roster } from './roster.js'
import { COOKIE, sessionRoutes, Sessions, type Claims } from './sessions.js'
import { streamRoutes } from './streams.js'
import { tokenRoutes } from './tokens.js'
import { findUser, mayHear } from './users.js'

export interface Options {
  /** A file whose end the board shows. */
  logFile?: string
  /** Signs the session cookies. Default: random, so a restart signs everyone out. */
  secret?: string
  logger?: boolean
}

const DRAIN_MS = 1_000
const PAGE_POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

/** The whole app, not yet listening. */
export async function build ({ logFile, secret = randomBytes(32).toString('hex'), logger = false }: Options = {}): Promise<FastifyInstance> {
  const app = fastify({ logger, ajv: { customOptions: { removeAdditional: false, coerceTypes: 'array' } } })
  await app.register(fastifyCookie, { secret })
  const sessions = new Sessions(app)
  const board = new Board(sessions, logFile ?? null)

  await app.register(ssePlugin, {
    events,
    requireAuthentication: true,
    authHandler: ({ token, cookies }) => {
      const caller = sessions.identify({ token, cookie: cookies[COOKIE] })
      if (caller === null) return null
      const { user, session, expiresAt } = caller
      const claims: Claims = { session }
      return { userId: user.id, claims, ...(expiresAt === null ? {} : { expiresAt }) }
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

  // Browsers open connections in advance; one that has not asked for anything would keep a closing server for a minute.
  app.addHook('preClose', async () => { setTimeout(() => { app.server.closeAllConnections() }, DRAIN_MS).unref() })

  const roster = new Roster(app)
  sessionRoutes(app, sessions, { run: board.run, logFile: logFile === undefined ? null : basename(logFile) })
  streamRoutes(app, board, roster)
  chatRoutes(app, board)
  noticeRoutes(app, board)
  await tokenRoutes(app)
  await app.register(fastifyStatic, { root: fileURLToPath(new URL('public', import.meta.url)) })
  publish(app, board, roster)
  return app
}

async function main (): Promise<void> {
  const file = process.argv[2]
  const secret = process.env.SESSION_SECRET
  const app = await build({
    logger: process.env.LOG === '1',
    ...(file === undefined ? {} : { logFile: resolve(file) }),
    ...(secret === undefined ? {} : { secret })
  })
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    // The second one ends the process the hard way.
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
