import { Type, type Static } from '@sinclair/typebox'
import type { FastifyInstance } from 'fastify'
import type { Board } from './board.js'
import { NotAllowed, NotFound } from './errors.js'
import { findUser } from './users.js'

const Line = Type.String({ minLength: 1, maxLength: 120, pattern: '\\S' })

const Notice = Type.Object({
  title: Line,
  message: Type.String({ minLength: 1, maxLength: 500, pattern: '\\S' }),
  level: Type.Optional(Type.Union([Type.Literal('info'), Type.Literal('success'), Type.Literal('warning'), Type.Literal('error')])),
  /** The user that receives the notification. Absent: everyone. */
  to: Type.Optional(Type.String({ maxLength: 32 })),
  /** Whether the page shows a button to acknowledge the notification. */
  acknowledge: Type.Optional(Type.Boolean())
})

const Acknowledgement = Type.Object({ title: Line })

/** Adds the routes of notifications, to everyone or to one user. */
export function noticeRoutes (app: FastifyInstance, board: Board): void {
  app.post<{ Body: Static<typeof Notice> }>('/notify', { schema: { body: Notice } }, async (request, reply) => {
    const user = board.sessions.user(request)
    if (user.role === 'guest') throw new NotAllowed('Guests do not send notifications')
    const { title, message, level = 'info', to, acknowledge = false } = request.body
    if (to !== undefined && findUser(to) === undefined) throw new NotFound('No such user')
    board.post(user)
    const actions = acknowledge ? { actions: [{ label: 'Acknowledge', action: 'acknowledge' }] } : {}
    const { delivered } = await app.sse.broadcastNotification({ title, message, level, ...actions }, to === undefined ? {} : { userIds: [to] })
    reply.code(201)
    return { delivered }
  })

  app.post<{ Body: Static<typeof Acknowledgement> }>('/acknowledge', { schema: { body: Acknowledgement } }, async (request, reply) => {
    const user = board.sessions.user(request)
    board.post(user)
    const { delivered } = await app.sse.broadcastNotification({ title: 'Acknowledged', message: `${user.name} saw “${request.body.title}”`, level: 'success' })
    reply.code(201)
    return { delivered }
  })
}
