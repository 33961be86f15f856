import { randomBytes } from 'node:crypto'
import { Type, type Static } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { NotFound, SignInFirst } from './errors.js'
import { findUser, rooms, users, type User } from './users.js'

export const COOKIE = 'board_session'
const LIFETIME_MS = 8 * 3_600_000
const DEMO_TOKEN = /^demo-(\w+)$/

export interface Caller {
  readonly user: User
  /** One sign-in; a bearer token has none. */
  readonly session: string | null
  readonly expiresAt: number | null
}

/** What a stream remembers of its sign-in. */
export interface Claims {
  readonly session: string | null
}

const SignIn = Type.Object({ user: Type.String({ minLength: 1, maxLength: 32 }) })

/** Who is calling: a signed cookie `user.session.expiry` from a browser, or the demo token of a script. */
export class Sessions {
  readonly #app: FastifyInstance

  constructor (app: FastifyInstance) {
    this.#app = app
  }

  open (user: User): { cookie: string, expiresAt: number } {
    const expiresAt = Date.now() + LIFETIME_MS
    return { cookie: this.#app.signCookie(`${user.id}.${randomBytes(9).toString('base64url')}.${expiresAt}`), expiresAt }
  }

  identify (credentials: { token: string | null, cookie: string | undefined }): Caller | null {
    const named = credentials.token?.match(DEMO_TOKEN)?.[1]
    const guest = named === undefined ? undefined : findUser(named)
    if (guest !== undefined) return { user: guest, session: null, expiresAt: null }

    const cookie = this.#app.unsignCookie(credentials.cookie ?? '')
    if (!cookie.valid) return null
    const [userId = '', session = '', expiry = ''] = cookie.value.split('.')
    const user = findUser(userId)
    if (user === undefined || Number(expiry) <= Date.now()) return null
    return { user, session, expiresAt: Number(expiry) }
  }

  /** The caller of a request, if it has one. */
  find (request: FastifyRequest): Caller | null {
    const token = request.headers.authorization?.match(/^Bearer (\S+)$/i)?.[1] ?? null
    return this.identify({ token, cookie: request.cookies[COOKIE] })
  }

  /** The user of a request that needs one. */
  user (request: FastifyRequest): User {
    const caller = this.find(request)
    if (caller === null) throw new SignInFirst()
    return caller.user
  }
}

/** Signing in and out, and what a page shows before that. */
export function sessionRoutes (app: FastifyInstance, sessions: Sessions, facts: { run: string, logFile: string | null }): void {
  const cookieOptions = { path: '/', httpOnly: true, sameSite: 'strict' } as const

  app.get('/session', (request, reply) => {
    reply.header('cache-control', 'no-store')
    return { user: sessions.find(request)?.user ?? null, users, rooms, logFile: facts.logFile, run: facts.run }
  })

  app.post<{ Body: Static<typeof SignIn> }>('/login', { schema: { body: SignIn } }, (request, reply) => {
    const user = findUser(request.body.user)
    if (user === undefined) throw new NotFound('No such demo user')
    const { cookie, expiresAt } = sessions.open(user)
    reply.setCookie(COOKIE, cookie, { ...cookieOptions, expires: new Date(expiresAt) })
    return { user }
  })

  app.post('/logout', async (request, reply) => {
    const caller = sessions.find(request)
    reply.clearCookie(COOKIE, cookieOptions)
    if (caller === null || caller.session === null) return { closed: 0 }
    // Only the streams of this sign-in: the same user may be signed in elsewhere.
    const streams = app.sse.getConnectionsByUser(caller.user.id).filter(({ claims }) => (claims as Claims).session === caller.session)
    for (const stream of streams) await app.sse.closeConnection(stream.clientId, 'logout')
    return { closed: streams.length }
  })
}
