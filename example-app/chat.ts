import { Type, type Static } from '@sinclair/typebox'
import type { FastifyInstance } from 'fastify'
import { conversationOf, type Board } from './board.js'
import { NotAllowed, NotFound } from './errors.js'
import { findRoom, findUser, mayHear, type User } from './users.js'

const Message = Type.Object({ text: Type.String({ minLength: 1, maxLength: 2_000, pattern: '\\S' }) })
interface Post { Params: { id: string }, Body: Static<typeof Message> }

/** Adds the routes of chat rooms and of private messages between two users. */
export function chatRoutes (app: FastifyInstance, board: Board): void {
  app.post<Post>('/rooms/:id/messages', { schema: { body: Message } }, async (request, reply) => {
    const user = board.sessions.user(request)
    const room = findRoom(request.params.id)
    if (room === undefined) throw new NotFound('No such room')
    if (!mayHear(user, `chat:${room.id}`)) throw new NotAllowed(`${room.title} is closed to you`)
    board.post(user)
    const data = board.roomMessages.add(room.id, { room: room.id, from: user.id, text: request.body.text })
    const { delivered } = await app.sse.broadcastEvent({ event: 'chat_message', data }, { subscriptionIds: [`chat:${room.id}`] })
    reply.code(201)
    return { seq: data.seq, delivered }
  })

  app.post<Post>('/users/:id/messages', { schema: { body: Message } }, async (request, reply) => {
    const user = board.sessions.user(request)
    const other = findUser(request.params.id)
    if (other === undefined) throw new NotFound('No such user')
    if (other.id === user.id) throw new NotAllowed('A private message needs somebody else')
    board.post(user)
    const conversation = conversationOf(user.id, other.id)
    const data = board.privateMessages.add(conversation, { conversation, from: user.id, to: other.id, text: request.body.text })
    // The sender is a receiver too, for the sender's other tabs.
    const { delivered } = await app.sse.broadcastEvent({ event: 'private_message', data }, { subscriptionIds: [user, other].map(topicOf) })
    reply.code(201)
    return { seq: data.seq, delivered }
  })
}

function topicOf (user: User): string {
  return `user:${user.id}:messages`
}
