import { setTimeout as wait } from 'node:timers/promises'
import { Type, type Static } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { EventPriority, type SSEConnection } from '../lib/index.js'
import type { Board } from './board.js'
import { NotAllowed, NotFound } from './errors.js'
import type { Roster } from './roster.js'
import { Tabs } from './tabs.js'

const Page = Type.Object({
  /** Random name of the browser tab. */
  tab: Type.Optional(Type.String({ pattern: '^[a-z0-9]{8,32}$' })),
  /** Subscriptions of the stream. Absent: those of the tab. Useful with curl. */
  topic: Type.Optional(Type.Array(Type.String({ maxLength: 100 }), { maxItems: 20 }))
})
const Cut = Type.Object({ seconds: Type.Number({ minimum: 0, maximum: 60 }) })

interface OfConnection { Params: { clientId: string } }
interface OfSubscription { Params: { clientId: string, topic: string } }

/** Adds the stream of a page, and the routes that change or close an open stream. */
export function streamRoutes (app: FastifyInstance, board: Board, roster: Roster): void {
  const tabs = new Tabs()
  const closing = new AbortController()
  app.addHook('preClose', async () => { closing.abort() })

  app.get<{ Querystring: Static<typeof Page> }>('/sse', { sse: true, schema: { querystring: Page } }, async (request, reply) => {
    const user = board.sessions.user(request)
    const { tab: name, topic: chosen } = request.query
    const tab = tabs.of(user, name ?? request.id)
    const cutMs = tab.cutUntil - Date.now()
    // The client reconnects soon. To simulate a longer interruption, the request is not answered before the interruption is over.
    if (cutMs > 0) {
      await wait(cutMs, undefined, { signal: closing.signal }).catch(() => {})
      // The user can have signed out meanwhile, which did not close this stream because it was not open.
      board.sessions.user(request)
    }

    const connection = await reply.sse({
      subscriptions: chosen ?? [...tab.topics],
      clientInfo: { tab: name ?? null },
      // Sent first, and again after a gap. If a topic is added, its state is sent before its events.
      snapshot: {
        load: ({ subscriptions }) => [
          { event: 'data', data: { resource: 'state', data: board.state(user, subscriptions) } },
          { event: 'data', data: { resource: 'presence', data: { users: roster.users() } } }
        ]
      }
    })
    const data = { clientId: connection.clientId, run: board.run, at: connection.clientInfo.connectedAt, topics: [...connection.subscriptions] }
    // Sent before a replay: the page compares event times with the time of connection to detect replayed events.
    connection.sendEvent({ event: 'data', data: { resource: 'welcome', data }, priority: EventPriority.CRITICAL })
    roster.changed()
    board.activity.note(`${user.name}: stream ${connection.clientId} opened, ${connection.subscriptions.size} subscriptions`)
    connection.signal.addEventListener('abort', () => {
      roster.changed()
      board.activity.note(`${user.name}: stream ${connection.clientId} ended, ${connection.closeReason}`)
    }, { once: true })
  })

  app.put<OfSubscription>('/connections/:clientId/subscriptions/:topic', async request => {
    const connection = own(request)
    // The plugin calls `authorizeSubscription`, as for a new stream.
    await app.sse.addSubscription(connection.clientId, request.params.topic)
    return remember(request, connection)
  })

  app.delete<OfSubscription>('/connections/:clientId/subscriptions/:topic', async request => {
    const connection = own(request)
    await app.sse.removeSubscription(connection.clientId, request.params.topic)
    return remember(request, connection)
  })

  app.post<OfConnection & { Body: Static<typeof Cut> }>('/connections/:clientId/cut', { schema: { body: Cut } }, async request => {
    const connection = own(request)
    const { tab } = connection.clientInfo
    if (typeof tab === 'string') tabs.of(board.sessions.user(request), tab).cutUntil = Date.now() + request.body.seconds * 1000
    // With this reason, the client reconnects by itself.
    await app.sse.closeConnection(connection.clientId, 'max-age')
    return { seconds: request.body.seconds }
  })

  app.delete<OfConnection>('/connections/:clientId', async request => {
    const user = board.sessions.user(request)
    const connection = find(request)
    if (connection.userId !== user.id && user.role !== 'admin') throw new NotAllowed('Only admins close the streams of others')
    await app.sse.closeConnection(connection.clientId, 'kicked')
    return { closed: 1 }
  })

  function find (request: FastifyRequest<OfConnection>): SSEConnection {
    const connection = app.sse.getConnection(request.params.clientId)
    if (connection === undefined) throw new NotFound('No such connection')
    return connection
  }

  /** Returns the connection of a path. Throws NotAllowed if it is not the caller's. */
  function own (request: FastifyRequest<OfConnection>): SSEConnection {
    const connection = find(request)
    if (connection.userId !== board.sessions.user(request).id) throw new NotAllowed('Not your stream')
    return connection
  }

  function remember (request: FastifyRequest, connection: SSEConnection): { topics: string[] } {
    const topics = [...connection.subscriptions]
    const { tab } = connection.clientInfo
    if (typeof tab === 'string') {
      const remembered = tabs.of(board.sessions.user(request), tab).topics
      remembered.clear()
      for (const topic of topics) remembered.add(topic)
    }
    roster.changed()
    return { topics }
  }
}
