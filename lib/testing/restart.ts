import type { Server } from 'node:http'
import { EventPriority } from '../events/event-rules.js'
import { TestMisuse } from '../errors.js'
import type { SSEManager } from '../manager.js'
import type { App } from './link.js'

/** Options of `restart()`. */
export interface RestartOptions {
  /** Whether the connections are cut first, so that no client receives `sse:close`, as when the process is killed. Default false. */
  crash?: boolean
}

/** Messages that are published at once, so that a shared log is not asked one by one. */
const AT_ONCE = 500
/** Bytes that cost about as much as one more message. */
const BYTES_PER_MESSAGE = 1_000

/**
 * Closes the application and replaces it by a new one at the same address. Events are kept only in a log that `build` gives to both, such as
 * `testLog()` or Redis: with the log in memory every returning client receives a gap (`epoch`).
 * @param build makes the new application, with its routes.
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
 * Pushes everything out of the history: each cursor from before has a gap (`trimmed`). Connected clients notice nothing. Publishes
 * `history.maxEvents` events that no client receives, or fewer that fill `history.maxBytes`; `testLog().trim()` is immediate.
 * @param target the application, or the manager when it has a name other than `sse`.
 */
export async function forceGap (target: App | SSEManager): Promise<void> {
  const manager = managerOf(target)
  await manager.open()
  const { eventLog, options: { history: { maxEvents, maxBytes }, maxEventBytes } } = manager.node
  const bytes = Math.min(maxEventBytes, maxBytes) >> 1
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
