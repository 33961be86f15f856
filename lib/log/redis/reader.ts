import { setImmediate as endOfTurn } from 'node:timers/promises'
import type { GapReason, Message } from '../broker.js'
import type { Connection } from './client.js'
import { READ_COUNT, type Entry, type News, type RedisLog } from './store.js'

/** What a reader tells its broker. */
export interface ReaderSink {
  /** The log goes on behind `position`. The reason why not where this reader was; null at its first contact. */
  moved (epoch: number, position: number, reason: GapReason | null): void
  /** Messages in log order, the logged ones without a hole. */
  arrived (entries: readonly Arrival[]): void
}

export type Arrival = Entry & { readonly message: Message }

const BLOCK_MS = 2_000

/** Reads the log as it grows, on a connection of its own, and sees whether it is still the log it was. */
export class LogReader {
  readonly #log: RedisLog
  readonly #sink: ReaderSink
  #epoch = 0
  #position = 0
  /** When the entry at this position was logged: the same number at another time is another entry. */
  #positionTime: number | null = null
  #ephemerals = 0
  /** When this log was seen last, by Redis's clock. */
  #seenAt = 0

  constructor (log: RedisLog, sink: ReaderSink) {
    this.#log = log
    this.#sink = sink
  }

  /** See `Serve`. */
  async serve (connection: Connection, up: () => void): Promise<never> {
    await this.#greet(connection)
    up()
    for (;;) {
      const news = await this.#news(connection)
      // Silence may be that of another log: of one that was wiped nothing comes that is behind our place.
      if (news === null) await this.#greet(connection)
      else if (news.epoch === this.#epoch) this.#take(news)
      else if (news.logged.length === 0) await this.#greet(connection)
      else this.#begin(news)
      // What came is written to clients first. What is published meanwhile comes together, and goes out together.
      await endOfTurn()
    }
  }

  async #news (connection: Connection): Promise<News | null> {
    const news = await this.#log.follow(connection, this.#epoch, this.#position, this.#ephemerals, BLOCK_MS)
    if (news === null || news.epoch !== this.#epoch) return news
    // Who waits is told of one stream only, by Redis before 7.2: what the other has may belong before it.
    const { logged, ephemeral } = news
    const torn = ephemeral.length === 0 ? logged.at(-1)!.other > this.#ephemerals : logged.length === 0 && ephemeral.at(-1)!.other > this.#position
    return torn ? await this.#log.follow(connection, this.#epoch, this.#position, this.#ephemerals, 0) : news
  }

  /** Finds its place, after a connection was lost too: Redis may have come back with less than it had, or with nothing. */
  async #greet (connection: Connection): Promise<void> {
    const known = this.#epoch !== 0
    let place = await this.#log.greet(connection, { asked: this.#position })
    if (known && place.epoch === this.#epoch) {
      this.#seenAt = place.now
      if (place.newest >= this.#position && (place.askedTime === null || this.#positionTime === null || place.askedTime === this.#positionTime)) return
      // Entries that we have read are gone and their numbers are, or will be, given again: no cursor of this epoch is good any more.
      place = await this.#log.greet(connection, { asked: 0, giveUp: this.#epoch })
    }
    // All of a log that began after we saw the old one is news. Of any other, what is in it may be older than what clients have.
    if (known && place.epoch > this.#seenAt) this.#move({ ...place, position: place.oldest - 1, time: null }, 'epoch')
    else this.#move({ ...place, position: place.newest, time: place.newestTime }, known ? 'epoch' : null)
  }

  #move ({ epoch, position, time, ephemerals, now }: { epoch: number, position: number, time: number | null, ephemerals: number, now: number }, reason: GapReason | null): void {
    this.#epoch = epoch
    this.#position = position
    this.#positionTime = time
    this.#ephemerals = ephemerals
    this.#seenAt = now
    this.#sink.moved(epoch, position, reason)
  }

  /** The first entries of a new life of the log woke us. */
  #begin (news: News): void {
    const [{ number, time }] = news.logged as [Entry]
    this.#move({ epoch: news.epoch, position: number - 1, time: null, ephemerals: 0, now: time }, 'epoch')
    this.#take(news)
  }

  #take ({ logged, ephemeral }: News): void {
    const arrivals: Arrival[] = []
    let next = 0
    const passOn = (mayPass: (entry: Entry) => boolean) => {
      for (; next < logged.length && mayPass(logged[next]!); next++) this.#pass(logged[next]!, arrivals)
    }
    for (const entry of ephemeral) {
      passOn(({ number }) => number <= entry.other)
      // Of either kind there may have been no room for more, and what is missing comes before what is here. It comes again.
      if (entry.other > this.#position && logged.length === READ_COUNT) break
      this.#ephemerals = entry.number
      if (isArrival(entry)) arrivals.push(entry)
    }
    passOn(({ other }) => other <= this.#ephemerals || ephemeral.length < READ_COUNT)
    this.#flush(arrivals)
  }

  #pass (entry: Entry, arrivals: Arrival[]): void {
    const ours = isArrival(entry)
    const expected = this.#position + 1
    this.#position = entry.number
    // Ephemeral ones that were published before it and are not here are gone.
    if (ours) this.#ephemerals = Math.max(this.#ephemerals, entry.other)
    this.#positionTime = this.#seenAt = entry.time
    if (!ours || entry.number !== expected) {
      this.#flush(arrivals)
      this.#sink.moved(this.#epoch, ours ? entry.number - 1 : entry.number, 'trimmed')
    }
    if (ours) arrivals.push(entry)
  }

  #flush (arrivals: Arrival[]): void {
    if (arrivals.length > 0) this.#sink.arrived(arrivals.splice(0))
  }
}

function isArrival (entry: Entry): entry is Arrival {
  return entry.message !== null
}
