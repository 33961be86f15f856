import type { Test } from 'tap'
import type { SSEConnection } from '../../lib/connections/connection.js'
import { Flusher } from '../../lib/delivery/flusher.js'
import type { Frame } from '../../lib/delivery/frame.js'
import { Telemetry } from '../../lib/diagnostics/telemetry.js'
import { MemoryRunStore } from '../../lib/log/memory-run-store.js'
import { runKey, type RunEnd, type RunPage } from '../../lib/log/run-store.js'
import { RunFeed } from '../../lib/runs/feed.js'
import { RunReader } from '../../lib/runs/reader.js'
import { formatRunId, startOf } from '../../lib/runs/run-position.js'
import { testClock } from '../../lib/testing/index.js'
import type { Chunk } from '../../lib/wire/chunk.js'
import { encodeEvent } from '../../lib/wire/event-stream.js'
import { EventStreamParser } from './parser.js'

const key = runKey('a', null)
const claim = { key, token: 't', leaseMs: 60_000, ttlMs: 60_000, joinFinished: false, settings: '' }

/** The part of a connection that a reader uses. It notes what it is given. */
export class Client {
  readonly clientId = 'client'
  readonly control: boolean
  isConnected = true
  /** Whether the client does not read. */
  isSlow = false
  /** Whether as much is queued as a source may queue. */
  isCrowded = false
  /** `close` with the reason, or `fail`. */
  ended: string | null = null
  /** Numbers of events as they are counted for the statistics. */
  written = 0
  readonly #abort = new AbortController()
  readonly #parser = new EventStreamParser()
  #drain: (() => void)[] = []

  constructor (control = true) {
    this.control = control
  }

  get signal (): AbortSignal {
    return this.#abort.signal
  }

  crowdedFor (): boolean {
    return this.isSlow || this.isCrowded
  }

  receive (frame: Frame): boolean {
    if (this.isConnected) this.#take(frame.head + frame.text, 1)
    return this.isConnected
  }

  writeTogether (chunk: Chunk, events: number): boolean {
    if (!this.isConnected || this.isSlow) return false
    // It would end the response.
    if (chunk.plain.length === 0) this.#end('empty chunk')
    this.#take(chunk.plain.toString(), events)
    return true
  }

  #take (text: string, events: number): void {
    this.#parser.push(Buffer.from(text))
    this.written += events
  }

  /** What the client has received: the number of the id, the name and the data. */
  get events (): [id: string, event: string, data: string][] {
    return this.#parser.events.map(({ lastEventId, type, data }) => [lastEventId.replace(/^.*\./, ''), type, data])
  }

  drained (): Promise<void> {
    return this.crowdedFor() && this.isConnected ? new Promise(resolve => { this.#drain.push(resolve) }) : Promise.resolve()
  }

  thaw (): void {
    this.isSlow = this.isCrowded = false
    for (const resolve of this.#drain.splice(0)) resolve()
  }

  toggle (): void {
    if (this.isSlow) this.thaw()
    else this.isSlow = true
  }

  close (reason: string): void {
    this.#end(`close ${reason}`)
  }

  fail (): void {
    this.#end('fail')
  }

  /** The client disconnects. */
  leave (): void {
    this.#end('leave')
  }

  #end (how: string): void {
    this.ended ??= how
    this.isConnected = false
    this.#abort.abort()
    for (const resolve of this.#drain.splice(0)) resolve()
  }
}

/** A store whose reads can fail, be late, or be of a store that has lost events. */
class UnreliableRunStore extends MemoryRunStore {
  problem: Error | null = null
  isLate = false
  reads = 0
  change: (page: RunPage) => RunPage = page => page

  override read (...args: Parameters<MemoryRunStore['read']>): any {
    this.reads++
    const read = () => {
      if (this.problem !== null) throw this.problem
      const { state, texts } = super.read(...args)
      return this.change({ state: state === null ? null : { ...state }, texts })
    }
    return this.isLate ? new Promise(resolve => setImmediate(resolve)).then(read) : read()
  }
}

/** A run `a` in this store, and its feed. */
export async function startFeed (t: Test) {
  const clock = testClock()
  const store = new UnreliableRunStore(clock.clock, 1 << 30)
  t.teardown(() => store.close())
  const flusher = new Flusher(0)
  const feed: RunFeed = new RunFeed(store, key, feed => flusher.mark(feed))
  store.watch({ news: (_key, events) => feed.tell(events), ended: () => feed.tell() })
  const telemetry = new Telemetry(null)
  let { state } = await store.claim(claim)
  let count = 0
  return {
    clock,
    store,
    telemetry,
    /** The id of an event of the current generation. */
    id: (event: number) => formatRunId(state.generation, event),
    /** The data of the events are their numbers. */
    append (events = 1) {
      store.append({ ...claim, generation: state.generation }, count, Array.from({ length: events }, (_, n) => encodeEvent('message', String(count + n + 1))))
      count += events
    },
    /** Tells the readers that there is something new, without saying what. */
    tell: () => feed.tell(),
    finish: (status: RunEnd) => store.finish(key, { status }),
    /** Ends the run, and starts the next generation. */
    async replace () {
      await store.finish(key, { status: 'done' })
      ;({ state } = await store.claim(claim))
      count = 0
    },
    read (client = new Client(), cursor: string | null = null) {
      const begin = startOf(state, cursor)
      const reader = new RunReader(client as unknown as SSEConnection, feed, begin, clock.clock, telemetry)
      feed.join(reader)
      const played = reader.play(begin, cursor).finally(() => feed.leave(reader))
      played.catch(() => {})
      return { client, played }
    }
  }
}
