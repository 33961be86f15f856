import type { Server } from 'node:http'
import { EventPriority } from '../events/event-rules.js'
import { TestMisuse } from '../errors.js'
import type { SSEManager } from '../manager.js'
import type { App } from './link.js'

/** Options of `restart()`. */
export interface RestartOptions {
  /** Whether the connections are destroyed first. As after a killed process, clients then receive no `sse:close`. Default false. */
  crash?: boolean
}

/** Number of concurrent publishes. One at a time would be slow on a shared log. */
const AT_ONCE = 500
/** Bytes that take about as much time as one more message. */
const BYTES_PER_MESSAGE = 1_000

/**
 * Closes an application, and starts a new one at the same address. Resolves with the new application. Events are kept only if both have
 * the same log, such as `testLog()` or Redis. With the default log in memory, every reconnecting client receives a gap (`epoch`).
 * @param build creates the new application, with its routes
 * @example
 * ```ts
 * const next = await restart(app, build)
 * const stream = await before.reconnect({ app: next })
 * ```
 */
export async function restart<A extends App> (app: A, build: () => A | Promise<A>, { crash = false }: RestartOptions = {}): Promise<A> {
  const server = app.server as Server
  const address = server.listening ? server.address() : null
  if (crash) server.closeAllConnections()
  await app.close()
  const next = await build()
  if (address === null || (next.server as Server).listening) await next.ready()
  else if (typeof address === 'string') await next.listen({ path: address })
  else await next.listen({ host: address.address, port: address.port })
  return next
}

/**
 * Removes all events from the history: every earlier cursor has a gap (`trimmed`). Connected clients receive nothing. The function
 * publishes events without receivers until `history.maxEvents` or `history.maxBytes` is reached. `testLog().trim()` is faster.
 * @param target the application, or its manager if the manager is not `app.sse`
 * @throws SSE_ERR_TEST_MISUSE
 */
export async function forceGap (target: App | SSEManager): Promise<void> {
  const manager = managerOf(target)
  await manager.open()
  const { eventLog, options: { history: { maxEvents, maxBytes }, maxEventBytes } } = manager.node
  const bytes = maxEventBytes >> 1
  const byBytes = Math.ceil(maxBytes / bytes) + 1
  const fills = byBytes * (1 + bytes / BYTES_PER_MESSAGE) < maxEvents
  const count = fills ? byBytes : maxEvents + 1
  const data = fills ? 'x'.repeat(bytes) : ''
  for (let done = 0; done < count; done += AT_ONCE) {
    const part = Math.min(AT_ONCE, count - done)
    await Promise.all(Array.from({ length: part }, () => eventLog.append({ event: 'message', data, retry: undefined, priority: EventPriority.NORMAL, key: undefined, target: { clientIds: [] }, ephemeral: false, seq: 0 })))
  }
}

const kManager = Symbol.for('fastify-sse-manager.manager')

function managerOf (target: App | SSEManager): SSEManager {
  if ('node' in target && 'broadcastEvent' in target) return target
  const { sse } = target as { sse?: SSEManager }
  if (sse !== undefined && kManager in sse) return sse
  throw new TestMisuse('forceGap() finds no manager as app.sse: pass the manager itself, such as app.events if that is its name')
}
