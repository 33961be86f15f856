import type { Test } from 'tap'
import { EventPriority, type OutgoingMessage } from '../../lib/index.js'
import { Appender } from '../../lib/log/redis/appender.js'
import type { Connection } from '../../lib/log/redis/client.js'
import type { Appended, Batch, RedisStore } from '../../lib/log/redis/store.js'
import { turns } from './wait.js'

const HISTORY = { maxEvents: 10, maxAgeMs: 60_000, maxBytes: 1_000 }
/** What a publish is rejected with. */
export const unavailable = (message: RegExp, cause?: Error) => ({ code: 'SSE_ERR_BROKER_UNAVAILABLE', message, ...(cause !== undefined && { cause }) })

/** A batch that was sent to the store. */
export interface Sent extends Batch {
  readonly texts: string[]
  readonly over: Connection
  resolve (place: Appended): void
  reject (error: Error): void
}

/** An appender on a store that answers when the test says so. */
export function appending (t: Test, { publishTimeoutMs = 60_000, maxPendingBytes = 1e9, waitWhenDown = false, onStored = null as ((epoch: number) => void) | null } = {}) {
  const sent: Sent[] = []
  const greets: unknown[] = []
  const store = {
    writerId: 'writer',
    greet: async (_over: Connection, asked: object) => {
      greets.push(asked)
      return { epoch: 7 }
    },
    append: (over: Connection, batch: Batch) => new Promise((resolve, reject) => {
      sent.push({ ...batch, texts: batch.items.map(({ message: { data } }) => data), over, resolve, reject })
    })
  }
  const appender = new Appender(store as unknown as RedisStore, HISTORY, { publishTimeoutMs, maxPendingBytes, waitWhenDown }, onStored)
  t.teardown(async () => {
    appender.lost(new Error('over'))
    await appender.close()
  })
  const failures: Error[] = []
  const reports: unknown[] = []
  return {
    appender,
    sent,
    greets,
    reports,
    /** Errors of connections, as their link learns of them. */
    failures,
    async connect () {
      const connection: Connection = { send: async () => null, destroy: () => {} }
      appender.serve(connection, report => { reports.push(report) }).catch(error => { failures.push(error) })
      await turns(1)
      return connection
    },
    publish (data: string, more: Partial<OutgoingMessage> = {}) {
      const publishing = appender.publish({ event: 'e', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false, ...more })
      publishing.catch(() => {})
      return publishing
    },
    /** The reader of this node has read the messages of a batch. */
    see ({ items }: Sent, first: number) {
      for (const [i, { nonce }] of items.entries()) appender.seen(nonce, first + i, 1)
    }
  }
}
