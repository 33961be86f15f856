import type { Broker, GapReason, History, LogPosition, LogSize, Page, Published, PublishingLog, ReadRequest, Sink } from '../broker.js'
import type { Message, OutgoingMessage } from '../../events/message.js'
import type { Interest } from '../log-index.js'
import { BrokerUnavailable, Closed, InvalidOption } from '../../errors.js'
import { createId } from '../../util/id.js'
import { inTime } from '../../util/timeout.js'
import type { ResolvedRedisOptions } from './options.js'
import { Appender } from './appender.js'
import type { Connect, Connection } from './client.js'
import { ServerClock } from './server-clock.js'
import { HistoryReader } from './history-reader.js'
import { CursorAhead } from './cursor-ahead.js'
import { NodeChannel } from './node-channel.js'
import { Reconnector, type Serve } from './reconnector.js'
import { RedisRunStore } from './run-store.js'
import { RedisStore } from './store.js'
import { LogReader, type Arrival } from './reader.js'
import { HistoryCache, type Fetch } from './history-cache.js'

/** Epoch before the first contact with Redis. Cursors with it are never valid later. */
const NO_EPOCH = 'none'

/** An event log that many nodes share, in Redis Streams. `redisStreamsBroker` creates it. */
export class RedisStreamsBroker implements Broker {
  readonly shared = true
  readonly runs: RedisRunStore
  readonly #options: ResolvedRedisOptions
  readonly #connect: Connect
  readonly #clock = new ServerClock()
  readonly #log: RedisStore
  readonly #nodes: NodeChannel
  readonly #reader: LogReader
  readonly #cursorAhead: CursorAhead
  readonly #past: HistoryReader
  /** Names of links that have never been up. */
  readonly #awaited = new Set<string>()
  /** Error of each link that is down. */
  readonly #down = new Map<string, Error>()
  #links: Reconnector[] = []
  #appender: Appender | null = null
  /** Null in a process that only publishes. */
  #sink: Sink | null = null
  /** Null before the broker is opened, and after it is closed. */
  #onState: Sink['state'] | null = null
  #history: History | null = null
  #epoch = 0
  #replay: HistoryCache | null = null
  /** The connection of the writer; null while it is down. */
  #connection: Connection | null = null
  #state: 'up' | 'down' | null = null
  #reason: string | null = null
  #onUp: (() => void) | null = null
  #started = false
  #closing: Promise<void> | null = null

  constructor (options: ResolvedRedisOptions, connect: Connect) {
    this.#options = options
    this.#connect = connect
    this.#log = new RedisStore(options.keyPrefix, createId(), this.#clock, options.replyTimeoutMs)
    this.#nodes = new NodeChannel(`{${options.keyPrefix}}:nodes`, this.#clock, options.replyTimeoutMs, message => { this.#deliver(message) })
    this.#reader = new LogReader(this.#log, this.#clock, {
      moved: (epoch, position, reason, why, commandsKept) => this.#move(epoch, position, reason, why, commandsKept),
      arrived: arrival => this.#arrive(arrival)
    })
    this.#cursorAhead = new CursorAhead(() => this, () => this.#end())
    this.#past = new HistoryReader(this.#log, connect)
    this.runs = new RedisRunStore(options, this.#clock, connect)
  }

  get epoch (): string {
    return this.#epoch === 0 ? NO_EPOCH : nameOf(this.#epoch)
  }

  get position (): number {
    return this.#replay?.position ?? 0
  }

  get size (): LogSize | undefined {
    return this.#replay?.size
  }

  async open (sink: Sink, history: History): Promise<void> {
    await this.#open(sink, history, null, () => {
      this.#sink = sink
      this.#link('reader', (connection, report) => this.#reader.serve(connection, report))
      this.#link('nodes', (connection, report) => this.#nodes.serve(connection, report))
    })
  }

  async openForPublishing (sink: Pick<Sink, 'state'>, history: History): Promise<PublishingLog> {
    await this.#open(sink, history, epoch => {
      if (epoch === this.#epoch) return
      this.#epoch = epoch
      // If this process is the first to reach a wiped Redis, nodes must learn which epoch came before: otherwise they would end all streams.
      this.#log.progress = { epoch, command: 0, commandTime: 0 }
    })
    return { position: () => this.#end() }
  }

  async #open (sink: Pick<Sink, 'state'>, history: History, onStored: ((epoch: number) => void) | null, addLinks = () => {}): Promise<void> {
    if (this.#appender !== null) throw new InvalidOption('broker', 'is already open: create one for each manager or publisher')
    this.#onState = (state, error) => sink.state(state, error)
    this.#history = history
    const appender = this.#appender = new Appender(this.#log, history, this.#options, onStored)
    addLinks()
    this.#link('writer', (connection, report) => {
      this.#connection = connection
      return appender.serve(connection, report)
    }, error => {
      this.#connection = null
      appender.lost(error)
    })
    const { startTimeoutMs, startDegraded } = this.#options
    const up = new Promise<void>(resolve => { this.#onUp = resolve })
    for (const link of this.#links) link.start()
    try {
      await inTime(up, startTimeoutMs)
    } catch (error) {
      const [cause = error as Error] = this.#down.values()
      if (!startDegraded) {
        await this.#reset()
        throw new BrokerUnavailable(`could not be reached within ${startTimeoutMs} ms; the cause says why`, { cause })
      }
    }
    this.#started = true
  }

  /** Returns to the state before `open`, which can be called again. */
  async #reset (): Promise<void> {
    await Promise.all(this.#links.map(link => link.stop()))
    this.#links = []
    this.#awaited.clear()
    this.#down.clear()
    this.#appender = this.#sink = null
  }

  async publish (message: OutgoingMessage): Promise<Published> {
    if (this.#appender === null || this.#closing !== null) throw new Closed()
    if (!message.ephemeral || message.channel !== 'node') return await this.#appender.publish(message)
    await this.#nodes.send(this.#reached(), message)
    return { seq: null, delivered: 0 }
  }

  async read ({ epoch, ...request }: ReadRequest): Promise<Page> {
    for (;;) {
      if (this.#sink === null || this.#closing !== null) throw new Closed()
      if (this.#replay !== null && this.#cursorAhead.has(epoch, request.after)) return await this.#replay.read(request)
      const gap = await this.#cursorAhead.gapBefore(epoch, request.after)
      if (gap !== null) return { messages: [], next: this.position, gap }
    }
  }

  hasNothing (after: number, interest: Interest): boolean {
    return this.#closing === null && this.#replay?.hasNothing(after, interest) === true
  }

  async claim (key: string, ttlMs: number): Promise<boolean> {
    if (this.#sink === null || this.#closing !== null) throw new Closed()
    return await this.#log.claim(this.#reached(), key, ttlMs)
  }

  close (): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  async #close (): Promise<void> {
    // An `open` that waits for Redis ends.
    this.#onUp?.()
    await this.#appender?.close()
    await this.runs.close()
    this.#sink = null
    this.#onState = null
    this.#cursorAhead.close(new Closed())
    this.#past.close()
    await Promise.all(this.#links.map(link => link.stop()))
  }

  #link (name: string, serve: Serve, onLost: (error: Error) => void = () => {}): void {
    this.#awaited.add(name)
    this.#links.push(new Reconnector({
      connect: this.#connect,
      serve,
      onChange: error => {
        if (error === null) {
          this.#awaited.delete(name)
          this.#down.delete(name)
          for (const link of this.#links) link.hurry()
        } else {
          // For the log: an error of a lost connection does not say which server it is.
          if (!('address' in error)) Object.assign(error, this.#connect.peer)
          this.#down.set(name, error)
          onLost(error)
        }
        this.#report()
      }
    }))
  }

  #report (): void {
    const [error] = this.#down.values()
    if (error === undefined && this.#awaited.size > 0) return
    const state = error === undefined ? 'up' : 'down'
    if (state === 'up') this.#onUp?.()
    const reason = error?.message ?? null
    if (state === this.#state && reason === this.#reason) return
    this.#state = state
    this.#reason = reason
    this.#onState?.(state, error)
  }

  /** Asks Redis for the end of the log. */
  async #end (): Promise<LogPosition> {
    if (this.#closing !== null) throw new Closed()
    const { epoch, newest } = await this.#log.greet(this.#reached(), { asked: 0 })
    return { epoch: nameOf(epoch), position: newest }
  }

  #reached (): Connection {
    if (this.#connection === null) throw new BrokerUnavailable('cannot be reached')
    return this.#connection
  }

  /** Continues with the log at a new position, and discards the cached history. */
  #move (epoch: number, position: number, reason: GapReason | null, why: string, commandsKept: boolean | undefined): void {
    const fetch: Fetch = async (from, to) => {
      // While Redis is unreachable, readers fail at once instead of each trying a connection.
      this.#reached()
      const entries = await this.#past.read(epoch, from, to)
      return entries.map(entry => ({ ...entry, time: this.#clock.localTime(entry.time) }))
    }
    this.#epoch = epoch
    this.#replay = new HistoryCache(this.#history!, position, fetch)
    this.#appender!.skipped(epoch, position)
    // Clients that connected before the first contact have a cursor of NO_EPOCH, so the first contact is a gap for them.
    if (reason !== null || this.#started) this.#sink?.gap(reason ?? 'epoch', reason === null ? undefined : new BrokerUnavailable(why), commandsKept)
    this.#cursorAhead.moved()
  }

  #arrive ({ message, time, nonce }: Arrival): void {
    if (message.seq > 0) this.#replay!.append(message, this.#clock.localTime(time))
    const { delivered, fault } = this.#deliver(message)
    this.#appender!.seen(nonce, message.ephemeral ? null : message.seq, delivered)
    // The delivery failed halfway: some connections may lack the message. All of them receive a gap event, and delivery continues.
    if (fault !== null) this.#tellGap(fault)
    this.#cursorAhead.arrived(this.position)
  }

  #deliver (message: Message): { delivered: number, fault: Error | null } {
    try {
      return { delivered: this.#sink?.deliver(message) ?? 0, fault: null }
    } catch (error) {
      return { delivered: 0, fault: error as Error }
    }
  }

  #tellGap (fault: Error): void {
    try {
      this.#sink?.gap('trimmed', fault, true)
    } catch {
      // The gap failed like the delivery. Without this warning the fault would be invisible.
      process.emitWarning(fault)
    }
  }
}

function nameOf (epoch: number): string {
  return epoch.toString(36)
}
