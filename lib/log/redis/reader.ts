import { setImmediate as endOfTurn } from 'node:timers/promises'
import { BrokerUnavailable } from '../../errors.js'
import { NODE_EVENT } from '../../events/control.js'
import type { Message } from '../../events/message.js'
import type { GapReason } from '../broker.js'
import type { Connection } from './client.js'
import type { ServerClock } from './server-clock.js'
import type { Entry } from './entry.js'
import { ReadSize } from './read-size.js'
import type { Report } from './reconnector.js'
import type { News, LogState, RedisStore } from './store.js'

/** Receives messages and changes of position from a reader. */
export interface ReaderSink {
  /**
   * The reader continues after `position`.
   * @param reason why it does not continue at its own position; null at the first contact
   * @param why what happened to the log, as the end of a sentence that begins with "The event log"
   * @param commandsKept whether no command is among the lost messages; see `Sink.gap`
   */
  moved (epoch: number, position: number, reason: GapReason | null, why: string, commandsKept: boolean | undefined): void
  /** The next message in log order. Never throws. */
  arrived (entry: Arrival): void
}

/** An entry that this package wrote. */
export type Arrival = Entry & { readonly message: Message }

const BLOCK_MS = 2_000
/** Age of the last read entry from which a reader with more to read counts as late. */
const LATE_MS = 4_000

/** Reads new entries of the log on a separate connection, and detects when the log was lost, replaced or trimmed. */
export class LogReader {
  readonly #log: RedisStore
  readonly #clock: ServerClock
  readonly #sink: ReaderSink
  readonly #readSize = new ReadSize()
  #epoch = 0
  #position = 0
  /** Time of logging of the entry at this position. An entry with the same number and another time is a different entry. */
  #positionTime: number | null = null
  #ephemerals = 0
  /** Time of the last contact with this epoch, by Redis's clock. */
  #seenAt = 0
  /** Newest numbers in the last reply of `greet`. */
  #known = { newest: 0, ephemerals: 0 }

  constructor (log: RedisStore, clock: ServerClock, sink: ReaderSink) {
    this.#log = log
    this.#clock = clock
    this.#sink = sink
  }

  /** Reads over this connection until it fails; see `Serve`. Reports a problem until the reader has caught up. */
  async serve (connection: Connection, report: Report): Promise<never> {
    await this.#greet(connection)
    let goal = this.#known.newest
    let behind = this.#position < goal
    report(behind ? this.#lag(goal) : null)
    for (;;) {
      const news = await this.#news(connection)
      const late = news !== null && this.#take(news)
      const epoch = this.#epoch
      // After silence, the log is checked: a wiped log has no entries after our position, so no read would return any.
      if (news === null || news.suspect || late) await this.#greet(connection)
      if (late) goal = this.#known.newest
      // There is nothing more to read, or the numbers of another epoch are smaller.
      else if (news === null || epoch !== this.#epoch) goal = this.#position
      if (behind !== (this.#position < goal)) {
        behind = !behind
        report(behind ? this.#lag(goal) : null)
      }
      // Clients are written to before the next read. Messages published meanwhile arrive, and are sent, together.
      await endOfTurn()
    }
  }

  #lag (goal: number): Error {
    return new BrokerUnavailable(`has ${goal - this.#position} events that this node has not read yet: Redis, or the link to it, is slow`)
  }

  async #news (connection: Connection): Promise<News | null> {
    const position = { epoch: this.#epoch, seq: this.#position, ephemerals: this.#ephemerals }
    const news = await this.#log.follow(connection, position, this.#known, this.#readSize, BLOCK_MS)
    if (news === null) return null
    // Redis before 7.2 answers a blocked XREAD with one stream only. Entries of the other stream may come before it in log order.
    const { logged: { entries: logged }, ephemeral: { entries: ephemeral } } = news
    const torn = ephemeral.length === 0 ? (logged.at(-1)?.other ?? 0) > this.#ephemerals : logged.length === 0 && ephemeral.at(-1)!.other > this.#position
    return torn ? await this.#log.follow(connection, position, this.#known, this.#readSize, 0) : news
  }

  /** Checks the position, also after a lost connection: Redis may have restarted with fewer entries, or with none. */
  async #greet (connection: Connection): Promise<void> {
    const known = this.#epoch !== 0
    let state = await this.#log.greet(connection, { asked: this.#position })
    if (known && state.epoch === this.#epoch) {
      this.#seenAt = state.now
      this.#known = state
      const sameEntry = state.askedTime === null || this.#positionTime === null || state.askedTime === this.#positionTime
      if (state.newest >= this.#position && state.ephemerals >= this.#ephemerals && sameEntry) return
      // Entries that this node has read are lost, and their numbers are reused: all cursors of this epoch are invalid.
      state = await this.#log.greet(connection, { asked: 0, giveUp: this.#epoch })
    }
    // A log that began after the last contact with the old one is new as a whole. Entries of any other may be older than what
    // clients have received, so reading begins at its end.
    if (known && state.epoch >= this.#seenAt) this.#move({ ...state, ephemerals: 0 }, state.oldest - 1, null, 'epoch')
    else this.#move(state, state.newest, state.newestTime, known ? 'epoch' : null)
  }

  #move (state: LogState, position: number, time: number | null, reason: GapReason | null): void {
    const { epoch, newest, ephemerals, now, why } = state
    const commandsKept = this.#commandsKept(state, position)
    this.#epoch = epoch
    this.#position = position
    this.#positionTime = time
    this.#ephemerals = ephemerals
    this.#seenAt = now
    this.#known = { newest, ephemerals }
    this.#log.progress = { epoch, ...(state.command > position ? { command: 0, commandTime: 0 } : { command: state.command, commandTime: state.commandTime }) }
    this.#sink.moved(epoch, position, reason, `has a new epoch: ${why}`, commandsKept)
  }

  /**
   * Returns whether no command is lost: of the old epoch, or of the new one up to `position`. Undefined if Redis knows of no loss, but
   * cannot rule it out.
   */
  #commandsKept ({ command, previous }: LogState, position: number): boolean | undefined {
    const { progress } = this.#log
    if (command > 0 && position > 0) return false
    // At the first contact, connections cannot have missed a command of a log without commands.
    if (progress.epoch === 0) return true
    if (previous.epoch !== progress.epoch || previous.command > progress.command) return false
    return previous.command === progress.command && previous.commandTime !== progress.commandTime ? false : undefined
  }

  /** Delivers entries in log order. Returns whether this node is late: the entries are old and more follow. */
  #take ({ logged, ephemeral }: News): boolean {
    let next = 0
    const passOn = (mayPass: (entry: Entry) => boolean) => {
      for (; next < logged.entries.length && mayPass(logged.entries[next]!); next++) this.#pass(logged.entries[next]!)
    }
    for (const entry of ephemeral.entries) {
      passOn(({ number }) => number <= entry.other)
      // The reply was cut, and a missing logged entry comes before this ephemeral one. The next read returns both. If the reply has a
      // later logged entry, none is missing: the log has a hole, and without this check the next read would return the same again.
      if (entry.other > this.#position && logged.cut && next === logged.entries.length) break
      if (isArrival(entry)) this.#sink.arrived(entry)
      this.#ephemerals = entry.number
    }
    passOn(({ other }) => other <= this.#ephemerals || !ephemeral.cut)
    return logged.cut && this.#positionTime !== null && Date.now() - this.#clock.localTime(this.#positionTime) > LATE_MS
  }

  /** Delivers an entry and then moves the position, so that an entry whose delivery fails is read again. */
  #pass (entry: Entry): void {
    const { number, time, other } = entry
    const expected = this.#position + 1
    const ours = isArrival(entry)
    if (!ours || number !== expected) {
      this.#position = ours ? number - 1 : number
      this.#positionTime = null
      this.#sink.moved(this.#epoch, this.#position, 'trimmed', `lacks ${expected === this.#position ? `the event ${expected}` : `the events ${expected} to ${this.#position}`}: deleted, trimmed before this node has read them, or not written by this package`, ours && entry.command < expected)
    }
    if (!ours) return
    this.#sink.arrived(entry)
    this.#position = number
    this.#positionTime = this.#seenAt = time
    const [command, commandTime] = entry.message.event === NODE_EVENT ? [number, time] : [entry.command, entry.commandTime]
    if (command > this.#log.progress.command) this.#log.progress = { epoch: this.#epoch, command, commandTime }
    // Ephemeral messages that were published before this entry and have not arrived are lost.
    this.#ephemerals = Math.max(this.#ephemerals, other)
  }
}

function isArrival (entry: Entry): entry is Arrival {
  return entry.message !== null
}
