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
import type { News, Place, RedisStore } from './store.js'

/** What a reader tells its broker. */
export interface ReaderSink {
  /**
   * The log goes on behind `position`.
   * @param reason why not where this reader was; null at its first contact.
   * @param why what happened to the log, as the end of a sentence.
   * @param commandsKept whether it is known that no command is among what is lost; see `Sink.gap`.
   */
  moved (epoch: number, position: number, reason: GapReason | null, why: string, commandsKept: boolean | undefined): void
  /** The next message in log order. Never throws. */
  arrived (entry: Arrival): void
}

export type Arrival = Entry & { readonly message: Message }

const BLOCK_MS = 2_000
/** A reader that is this far behind, by the time at which entries were logged, and has more to read, is late. */
const LATE_MS = 4_000

/** Reads the log as it grows, on a connection of its own, and sees whether it is still the log it was. */
export class LogReader {
  readonly #log: RedisStore
  readonly #clock: ServerClock
  readonly #sink: ReaderSink
  readonly #readSize = new ReadSize()
  #epoch = 0
  #position = 0
  /** When the entry at this position was logged: the same number at another time is another entry. */
  #positionTime: number | null = null
  #ephemerals = 0
  /** When this log was seen last, by Redis's clock. */
  #seenAt = 0
  /** The newest numbers as Redis has confirmed them last. */
  #known = { newest: 0, ephemerals: 0 }

  constructor (log: RedisStore, clock: ServerClock, sink: ReaderSink) {
    this.#log = log
    this.#clock = clock
    this.#sink = sink
  }

  /** See `Serve`. Of use once it has read what was there when it began, or when it fell behind. */
  async serve (connection: Connection, report: Report): Promise<never> {
    await this.#greet(connection)
    let goal = this.#known.newest
    let behind = this.#position < goal
    report(behind ? this.#lag(goal) : null)
    for (;;) {
      const news = await this.#news(connection)
      const late = news !== null && this.#take(news)
      // Silence may be that of another log: of one that was wiped nothing comes that is behind our place.
      if (news === null || news.suspect || late) await this.#greet(connection)
      if (late) goal = this.#known.newest
      if (behind !== (this.#position < goal)) {
        behind = !behind
        report(behind ? this.#lag(goal) : null)
      }
      // What came is written to clients first. What is published meanwhile comes together, and goes out together.
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
    // Who waits is told of one stream only, by Redis before 7.2: what the other has may belong before it.
    const { logged: { entries: logged }, ephemeral: { entries: ephemeral } } = news
    const torn = ephemeral.length === 0 ? (logged.at(-1)?.other ?? 0) > this.#ephemerals : logged.length === 0 && ephemeral.at(-1)!.other > this.#position
    return torn ? await this.#log.follow(connection, position, this.#known, this.#readSize, 0) : news
  }

  /** Finds its place, after a connection was lost too: Redis may have come back with less than it had, or with nothing. */
  async #greet (connection: Connection): Promise<void> {
    const known = this.#epoch !== 0
    let place = await this.#log.greet(connection, { asked: this.#position })
    if (known && place.epoch === this.#epoch) {
      this.#seenAt = place.now
      this.#known = place
      const sameEntry = place.askedTime === null || this.#positionTime === null || place.askedTime === this.#positionTime
      if (place.newest >= this.#position && place.ephemerals >= this.#ephemerals && sameEntry) return
      // Entries that we have read are gone and their numbers are, or will be, given again: no cursor of this epoch is good any more.
      place = await this.#log.greet(connection, { asked: 0, giveUp: this.#epoch })
    }
    // All of a log that began after we saw the old one is news. Of any other, what is in it may be older than what clients have.
    if (known && place.epoch >= this.#seenAt) this.#move({ ...place, ephemerals: 0 }, place.oldest - 1, null, 'epoch')
    else this.#move(place, place.newest, place.newestTime, known ? 'epoch' : null)
  }

  #move (place: Place, position: number, time: number | null, reason: GapReason | null): void {
    const { epoch, newest, ephemerals, now, why } = place
    const commandsKept = this.#commandsKept(place, position)
    this.#epoch = epoch
    this.#position = position
    this.#positionTime = time
    this.#ephemerals = ephemerals
    this.#seenAt = now
    this.#known = { newest, ephemerals }
    this.#log.progress = { epoch, ...(place.command > position ? { command: 0, commandTime: 0 } : { command: place.command, commandTime: place.commandTime }) }
    this.#sink.moved(epoch, position, reason, `has begun anew: ${why}`, commandsKept)
  }

  /** Whether no command is lost of the old epoch, or of the new one up to `position`. Undefined: as far as Redis knows. */
  #commandsKept ({ command, previous }: Place, position: number): boolean | undefined {
    const { progress } = this.#log
    if (command > 0 && position > 0) return false
    // Connections that were opened before the first contact can have missed nothing in a log without commands.
    if (progress.epoch === 0) return true
    if (previous.epoch !== progress.epoch || previous.command > progress.command) return false
    return previous.command === progress.command && previous.commandTime !== progress.commandTime ? false : undefined
  }

  /** Delivers what came, in log order. Returns whether it is late: old, and with more behind it. */
  #take ({ logged, ephemeral }: News): boolean {
    let next = 0
    const passOn = (mayPass: (entry: Entry) => boolean) => {
      for (; next < logged.entries.length && mayPass(logged.entries[next]!); next++) this.#pass(logged.entries[next]!)
    }
    for (const entry of ephemeral.entries) {
      passOn(({ number }) => number <= entry.other)
      // Of either kind there may have been no room for more, and what is missing comes before what is here. It comes again.
      if (entry.other > this.#position && logged.cut) break
      if (isArrival(entry)) this.#sink.arrived(entry)
      this.#ephemerals = entry.number
    }
    passOn(({ other }) => other <= this.#ephemerals || !ephemeral.cut)
    return logged.cut && this.#positionTime !== null && Date.now() - this.#clock.localTime(this.#positionTime) > LATE_MS
  }

  /** The position moves behind an entry once it has been delivered: what fails in between is read again. */
  #pass (entry: Entry): void {
    const { number, time, other } = entry
    const expected = this.#position + 1
    const ours = isArrival(entry)
    if (!ours || number !== expected) {
      this.#position = ours ? number - 1 : number
      this.#positionTime = null
      this.#sink.moved(this.#epoch, this.#position, 'trimmed', `lacks ${expected === this.#position ? `the event ${expected}` : `the events ${expected} to ${this.#position}`}: deleted, trimmed before this node has read them, or none of ours`, ours && entry.command < expected)
    }
    if (!ours) return
    this.#sink.arrived(entry)
    this.#position = number
    this.#positionTime = this.#seenAt = time
    const [command, commandTime] = entry.message.event === NODE_EVENT ? [number, time] : [entry.command, entry.commandTime]
    if (command > this.#log.progress.command) this.#log.progress = { epoch: this.#epoch, command, commandTime }
    // Ephemeral ones that were published before it and are not here are gone.
    this.#ephemerals = Math.max(this.#ephemerals, other)
  }
}

function isArrival (entry: Entry): entry is Arrival {
  return entry.message !== null
}
