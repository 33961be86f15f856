import assert from 'node:assert/strict'
import type { GapReason } from '../../lib/index.js'
import type { Connection } from '../../lib/log/redis/client.js'
import type { Entry } from '../../lib/log/redis/entry.js'
import { LogReader } from '../../lib/log/redis/reader.js'
import type { ServerClock } from '../../lib/log/redis/server-clock.js'
import type { LogState, News, Position, Progress, RedisStore } from '../../lib/log/redis/store.js'
import { turns, until } from './wait.js'

/** No command. */
export const NONE = { command: 0, commandTime: 0 }
/** By how much the clock of Redis is ahead of that of the node. */
const AHEAD_MS = 3_600_000
/** A time by the clock of Redis. */
export const ago = (ms: number) => Date.now() + AHEAD_MS - ms
export const connection: Connection = { send: async () => null, destroy: () => {} }
/** The state of a log. */
export const place = (more: Partial<LogState>): LogState => ({ epoch: 1, oldest: 1, newest: 0, ephemerals: 0, now: 1_000, askedTime: null, newestTime: null, why: 'of the test', ...NONE, previous: { epoch: 0, ...NONE }, ...more })

/** An entry of the log; its message is null if this package did not write it. */
export function entry (number: number, other: number, more: Partial<Entry> & { event?: string, ephemeral?: boolean, foreign?: boolean } = {}): Entry {
  const { event = 'e', ephemeral = false, foreign = false, ...rest } = more
  const message = foreign ? null : { event, data: `${ephemeral ? 'ephemeral ' : ''}${number}`, priority: 1 as const, target: {}, ephemeral, seq: ephemeral ? 0 : number }
  if (foreign) return { message, nonce: '', epoch: 1, time: 0, number, other: 0, ...NONE }
  return { message, nonce: '', epoch: 1, time: ago(0), number, other, ...NONE, ...rest }
}

/** A reader on a store whose answers the test gives, and what it tells. */
export function reading () {
  const told: unknown[] = []
  const store = {
    progress: { epoch: 0, ...NONE } as Progress,
    greets: [] as unknown[],
    follows: [] as (Position & { known: object, blockMs: number })[],
    place: place({}),
    greet: async (_connection: Connection, asked: object) => {
      store.greets.push(asked)
      return store.place
    },
    follow: (_connection: Connection, position: Position, { newest, ephemerals }: Pick<LogState, 'newest' | 'ephemerals'>, _portion: unknown, blockMs: number) => {
      store.follows.push({ ...position, known: { newest, ephemerals }, blockMs })
      return new Promise<News | null>(resolve => { answer = resolve })
    }
  }
  let answer: ((news: News | null) => void) | null = null
  const reader = new LogReader(store as unknown as RedisStore, { localTime: (time: number) => time - AHEAD_MS } as unknown as ServerClock, {
    moved: (epoch: number, position: number, reason: GapReason | null, why: string, kept: boolean | undefined) => { told.push(['moved', epoch, position, reason, kept, why]) },
    arrived: ({ message: { data } }) => {
      told.push(data)
      if (data === failing.data) throw new Error('the delivery fails')
    }
  })
  const failing = { data: '' }
  const reports: (string | null)[] = []
  return {
    reader,
    store,
    reports,
    failing,
    told: () => told.splice(0),
    /** Reads over a new connection, from a log in this state. */
    async serve (more: Partial<LogState> = {}) {
      store.place = place(more)
      reader.serve(connection, problem => { reports.push(problem?.message ?? null) }).catch(error => { told.push(error) })
      await turns(2)
    },
    /** Answers a read. */
    async give (logged: Entry[] | null, ephemeral: Entry[] = [], { logged: loggedCut = false, ephemeral: ephemeralCut = false, suspect = false } = {}) {
      const resolve = await until(() => answer)
      answer = null
      const reads = store.follows.length
      resolve(logged === null ? null : { logged: { entries: logged, cut: loggedCut }, ephemeral: { entries: ephemeral, cut: ephemeralCut }, suspect })
      for (let i = 0; i < 20; i++) await null
      assert.ok(store.follows.slice(reads).every(({ blockMs }) => blockMs === 0), 'clients are written to before the next read')
      await turns(3)
    }
  }
}
