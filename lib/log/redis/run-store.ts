import { createHash } from 'node:crypto'
import { BrokerUnavailable, Closed } from '../../errors.js'
import { createId } from '../../util/id.js'
import { PAGE_BYTES, PAGE_EVENTS, runKey, type RunClaim, type RunClaimed, type RunEndReason, type RunHeld, type RunKey, type RunLease, type RunListed, type RunOutcome, type RunPage, type RunState, type RunStatus, type RunStore, type RunWatcher } from '../run-store.js'
import type { Connect } from './client.js'
import { OnDemandConnection } from './on-demand.js'
import { RunAppends } from './run-appends.js'
import type { Script } from './script.js'
import { CLAIM_RUN, FINISH_RUN, GET_RUN, LEAVE_RUN, NOTE_RUN, PARTS, READ_RUN } from './scripts/run.js'
import type { ServerClock } from './server-clock.js'
import { WakeChannel } from './wake-channel.js'

/** Time for which a node counts as a reader after its last read. Its readers read at least once a second. */
const READING_MS = 4_000
/** Number of fields of a state in a reply. */
const FIELDS = 11
/** Reply to a claim that has arrived after its deadline. */
const LATE = 'late'

/** A run that this node reads or produces. */
interface Known {
  /** The text of its key. */
  readonly text: string
  /** Hash of the text, which keys and messages contain. */
  readonly hash: string
  /** Its key in Redis. */
  readonly redisKey: string
  isRead: boolean
  /** Token of the producer on this node; null if there is none. */
  token: string | null
  /** Time of Redis's clock until which the run is in the list of its owner. */
  notedUntil: number
}

/** A state, and what only this file uses. */
interface Reply {
  readonly state: RunState
  readonly ttlMs: number
  /** Node of the producer. */
  readonly node: string
  /** Nodes with readers. */
  readonly readers: readonly string[]
  readonly now: number
}

/** Keeps runs in Redis: each in one key, whose hash tag is its own, and a list of the runs of each owner. */
export class RedisRunStore implements RunStore {
  readonly shared = true
  readonly #nodeId = createId()
  readonly #keyPrefix: string
  readonly #replyTimeoutMs: number
  readonly #clock: ServerClock
  readonly #link: OnDemandConnection
  readonly #appends: RunAppends
  readonly #channel: WakeChannel
  /** By the text of the key, and by hash. */
  readonly #known = new Map<string, Known>()
  #watcher: RunWatcher | null = null
  #closed = false

  constructor ({ keyPrefix, replyTimeoutMs }: { readonly keyPrefix: string, readonly replyTimeoutMs: number }, clock: ServerClock, connect: Connect) {
    this.#keyPrefix = keyPrefix
    this.#replyTimeoutMs = replyTimeoutMs
    this.#clock = clock
    this.#link = new OnDemandConnection(connect)
    this.#appends = new RunAppends(this.#link, replyTimeoutMs)
    this.#channel = new WakeChannel({ nodeId: this.#nodeId, keyPrefix, replyTimeoutMs }, this.#link, connect, ({ run: hash, ended, events }) => {
      const run = this.#known.get(hash)
      if (run === undefined) return
      if (ended === true) this.#watcher?.ended(run.text)
      else this.#watcher?.news(run.text, events)
    })
  }

  watch (watcher: RunWatcher): void {
    this.#watcher = watcher
  }

  async claim ({ key, token, leaseMs, ttlMs, joinFinished, settings }: RunClaim): Promise<RunClaimed> {
    const claim = () => this.#send(connection => {
      // A claim that this node has given up must not start a run later: it would have no source.
      const deadline = Math.floor(this.#clock.now + this.#replyTimeoutMs)
      return CLAIM_RUN.run(connection, [this.#nameOf(key).redisKey], [token, this.#nodeId, leaseMs, ttlMs, joinFinished ? 1 : 0, settings, deadline, partOf(key)].map(String), this.#replyTimeoutMs)
    }) as Promise<unknown[]>
    let [started, state] = await claim()
    if (String(started) === LATE) {
      // Redis's clock was set, or was not known exactly.
      this.#clock.observe(Number(state))
      ;[started, state] = await claim()
      if (String(started) === LATE) throw new BrokerUnavailable('has received the start of a run too late')
    }
    const reply = replyOf(state)
    if (String(started) !== '1') return { state: reply.state, started: false }
    const run = this.#know(key)
    run.token = token
    this.#channel.listen()
    // Noted again with the next append.
    await this.#note(key, run, reply.now, 2 * leaseMs + ttlMs).catch(() => {})
    return { state: reply.state, started: true }
  }

  // Not `async`, and one `then`: the usual call is for one token.
  append (lease: RunLease, after: number, texts: readonly string[]): Promise<RunState | null> {
    this.#assertOpen()
    const { key, generation, token, leaseMs } = lease
    const run = this.#nameOf(key)
    return this.#appends.add({ key: run.redisKey, generation, token, after, leaseMs, texts }).then(
      reply => reply === null ? null : this.#appended(run, lease, after, texts, replyOf(reply)),
      error => { throw this.#errorOf(error) }
    )
  }

  #appended (run: Known, { key, generation, leaseMs, ttlMs }: RunLease, after: number, texts: readonly string[], { state, readers, now }: Reply): RunState {
    if (texts.length > 0) for (const node of readers) this.#channel.tell(node, { run: run.hash, events: { generation, after, texts } })
    if (run.notedUntil < now + leaseMs + ttlMs) this.#note(key, run, now, 2 * leaseMs + ttlMs).catch(() => {})
    return state
  }

  async finish (key: RunKey, { status, reason }: RunOutcome, held?: RunHeld): Promise<RunState | null> {
    const producer = held === undefined ? ['', '', ''] : [held.lease.generation, held.lease.token, held.after]
    const known = this.#known.get(key.text)
    // Another producer can have followed already.
    if (known !== undefined && known.token === held?.lease.token) this.#forget(known, { token: null })
    const answer = await this.#run(FINISH_RUN, key, [status, reason ?? '', ...producer])
    if (answer === null) return null
    const { state, ttlMs, node, readers, now } = replyOf(answer)
    const { hash } = this.#nameOf(key)
    for (const reader of readers) this.#channel.tell(reader, { run: hash, ended: true })
    if (held === undefined) this.#channel.tell(node, { run: hash, ended: true })
    await this.#note(key, this.#nameOf(key), now, ttlMs).catch(() => {})
    return state
  }

  async get (key: RunKey): Promise<RunState | null> {
    const answer = await this.#run(GET_RUN, key, [])
    return answer === null ? null : replyOf(answer).state
  }

  async read (key: RunKey, generation: number, after: number, isReader: boolean): Promise<RunPage> {
    if (isReader) {
      this.#know(key).isRead = true
      this.#channel.listen()
    }
    const answer = await this.#run(READ_RUN, key, [generation, after, PAGE_BYTES, PAGE_EVENTS, isReader ? this.#nodeId : '', READING_MS]) as unknown[] | null
    if (answer === null) return { state: null, texts: [] }
    const [state, ...texts] = answer
    return { state: replyOf(state).state, texts: texts.map(String) }
  }

  async leave (key: RunKey): Promise<void> {
    const run = this.#known.get(key.text)
    if (run !== undefined) this.#forget(run, { isRead: false })
    await this.#run(LEAVE_RUN, key, [this.#nodeId])
  }

  async list (ownerId: string | null): Promise<RunListed[]> {
    const ids = await this.#send(connection => connection.send(['ZRANGE', this.#listOf(ownerId), '0', '-1'], this.#replyTimeoutMs)) as unknown[]
    const runs = await Promise.all(ids.map(async id => ({ runId: String(id), state: await this.get(runKey(String(id), ownerId)) })))
    return runs.filter((run): run is RunListed => run.state !== null).sort((one, other) => other.state.generation - one.state.generation)
  }

  async close (): Promise<void> {
    this.#closed = true
    this.#link.close()
    await this.#channel.close()
  }

  // --- Names ---

  #nameOf (key: RunKey): Known {
    const { text } = key
    const known = this.#known.get(text)
    if (known !== undefined) return known
    const hash = hashOf(text)
    return { text, hash, redisKey: `${this.#keyPrefix}:run:{${hash}}`, isRead: false, token: null, notedUntil: 0 }
  }

  #know (key: RunKey): Known {
    const run = this.#nameOf(key)
    this.#known.set(run.text, run)
    this.#known.set(run.hash, run)
    return run
  }

  #forget (run: Known, use: { isRead: false } | { token: null }): void {
    Object.assign(run, use)
    if (run.isRead || run.token !== null) return
    this.#known.delete(run.text)
    this.#known.delete(run.hash)
  }

  #listOf (ownerId: string | null): string {
    return `${this.#keyPrefix}:runs:{${hashOf(runKey('', ownerId).text)}}`
  }

  // --- Redis ---

  /** Adds the run to the list of its owner, for this time. */
  async #note ({ ownerId, runId }: RunKey, run: Known, now: number, forMs: number): Promise<void> {
    await this.#send(connection => NOTE_RUN.run(connection, [this.#listOf(ownerId)], [runId, String(forMs)], this.#replyTimeoutMs))
    run.notedUntil = now + forMs
  }

  async #run (script: Script, key: RunKey, args: readonly (string | number)[]): Promise<unknown> {
    return await this.#send(connection => script.run(connection, [this.#nameOf(key).redisKey], args.map(String), this.#replyTimeoutMs))
  }

  async #send<T> (task: Parameters<typeof OnDemandConnection.prototype.use<T>>[0]): Promise<T> {
    this.#assertOpen()
    try {
      return await this.#link.use(task)
    } catch (error) {
      throw this.#errorOf(error)
    }
  }

  #assertOpen (): void {
    if (this.#closed) throw new Closed()
  }

  #errorOf (cause: unknown): Error {
    return this.#closed ? new Closed() : new BrokerUnavailable('could not be reached for a run', { cause })
  }
}

/** The owner and the id are the user's: as a hash they have a fixed length, and no characters with a meaning in keys. */
function hashOf (id: string): string {
  return createHash('sha256').update(id).digest('base64url').slice(0, 32)
}

/** Returns the part of the generations of a key: without it, the ids of two runs could be the same. */
function partOf (key: RunKey): number {
  return createHash('sha256').update(key.text).digest().readUInt32BE() % PARTS
}

function replyOf (reply: unknown): Reply {
  const [generation, status, reason, events, startedAt, endedAt, ttlMs, node, readers, now, settings] = fieldsOf(String(reply)) as [string, RunStatus, RunEndReason | '', ...string[]]
  return {
    state: { generation: Number(generation), status, reason: reason === '' ? undefined : reason, events: Number(events), startedAt: Number(startedAt), endedAt: endedAt === '' ? null : Number(endedAt), settings: settings!, isRead: readers !== '' },
    ttlMs: Number(ttlMs),
    node: node!,
    readers: readers === '' ? [] : readers!.split(','),
    now: Number(now)
  }
}

/** The settings, which are last, may contain line feeds. */
function fieldsOf (reply: string): string[] {
  const fields = reply.split('\n')
  return fields.length === FIELDS ? fields : [...fields.slice(0, FIELDS - 1), fields.slice(FIELDS - 1).join('\n')]
}
