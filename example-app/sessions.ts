import { Type, type Static } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { NotFound, SignInFirst } from './errors.js'
import { SignIns, type SignIn } from './sign-ins.js'
import { findUser, rooms, users, type User } from './users.js'

export const COOKIE = 'board_session'
const DEMO_TOKEN = /^demo-(\w+)$/

/** An authenticated caller. */
export interface Caller {
  readonly user: User
  /** The sign-in of a browser; null for a bearer token. */
  readonly signIn: SignIn | null
}

/** The claims of a connection: the entry of its sign-in, without the secret in the cookie. */
export interface Claims {
  readonly signIn: SignIn | null
}

const Body = Type.Object({ user: Type.String({ minLength: 1, maxLength: 32 }) })

/** Authenticates callers: browsers by the cookie of a sign-in, scripts by the token of a demo user. */
export class Sessions {
  readonly #signIns: SignIns

  constructor (file: string | null) {
    this.#signIns = new SignIns(file)
  }

  /** Signs a user in, and returns the value of the cookie. */
  open (user: User): { cookie: string, expiresAt: number } {
    const { id, expiresAt } = this.#signIns.open(user.id)
    return { cookie: id, expiresAt }
  }

  /** Signs out: the cookie of the request is no longer valid. */
  end (request: FastifyRequest): void {
    this.#signIns.end(request.cookies[COOKIE] ?? '')
  }

  /** Returns the caller with this token or cookie; null for an unauthenticated caller. */
  identify ({ token, cookie = '' }: { token: string | null, cookie: string | undefined }): Caller | null {
    const named = token?.match(DEMO_TOKEN)?.[1]
    const guest = named === undefined ? undefined : findUser(named)
    if (guest !== undefined) return { user: guest, signIn: null }

    const signIn = this.#signIns.find(cookie)
    const user = signIn === null ? undefined : findUser(signIn.userId)
    return user === undefined ? null : { user, signIn }
  }

  /** Returns the caller of a request; null for an unauthenticated request. */
  find (request: FastifyRequest): Caller | null {
    const token = request.headers.authorization?.match(/^Bearer (\S+)$/i)?.[1] ?? null
    return this.identify({ token, cookie: request.cookies[COOKIE] })
  }

  /** Returns the user of a request. Throws SignInFirst for an unauthenticated request. */
  user (request: FastifyRequest): User {
    const caller = this.find(request)
    if (caller === null) throw new SignInFirst()
    return caller.user
  }
}

/** Adds the routes to sign in and out, and the data of the sign-in page. */
export function sessionRoutes (app: FastifyInstance, sessions: Sessions, facts: { run: string, log: { name: string | null } }): void {
  const cookieOptions = { path: '/', httpOnly: true, sameSite: 'strict' } as const

  app.get('/session', (request, reply) => {
    reply.header('cache-control', 'no-store')
    return { user: sessions.find(request)?.user ?? null, users, rooms, logFile: facts.log.name, run: facts.run }
  })

  app.post<{ Body: Static<typeof Body> }>('/login', { schema: { body: Body } }, (request, reply) => {
    const user = findUser(request.body.user)
    if (user === undefined) throw new NotFound('No such demo user')
    const { cookie, expiresAt } = sessions.open(user)
    reply.setCookie(COOKIE, cookie, { ...cookieOptions, expires: new Date(expiresAt) })
    return { user }
  })

  app.post('/logout', async (request, reply) => {
    const caller = sessions.find(request)
    reply.clearCookie(COOKIE, cookieOptions)
    if (caller === null || caller.signIn === null) return { closed: 0 }
    // Before the streams are closed, so that no new stream opens meanwhile.
    sessions.end(request)
    // Only the streams of this sign-in are closed: the same user can be signed in elsewhere.
    const streams = app.sse.getConnectionsByUser(caller.user.id).filter(({ claims }) => (claims as Claims).signIn === caller.signIn)
    for (const stream of streams) await app.sse.closeConnection(stream.clientId, 'logout')
    return { closed: streams.length }
  })
}
