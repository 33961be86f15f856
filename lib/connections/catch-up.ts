import type { Message } from '../events/message.js'
import type { Broker, GapReason, Page } from '../log/broker.js'
import { formatLanes, type Lanes } from '../log/cursor.js'
import type { Interest } from '../log/log-index.js'
import type { Turns } from '../delivery/replay-scheduler.js'
import type { Frame } from '../delivery/frame.js'
import type { EventPriority } from '../events/event-rules.js'
import type { Yielder } from '../util/memory-budget.js'
import type { ConnectionContext } from './context.js'
import { Outbox } from './outbox.js'
import type { OutboxOwner } from './outbox-owner.js'

const PAGE_EVENTS = 128
/** Approximate maximum size of a page in bytes. A socket write is not larger, so further events would wait in memory. */
const PAGE_BYTES = 16 * 1024

/** The connection that is behind. */
export interface CatchUpOwner extends OutboxOwner {
  /** The id of the connection. */
  readonly clientId: string
}

/** What a connection that is behind sends before it is live again: the frames in its outbox, and the events that it reads from the log. */
export class CatchUp implements Yielder {
  readonly outbox: Outbox
  readonly #context: ConnectionContext
  /** Position up to which events are sent; Infinity without a limit. Later events wait for a snapshot. */
  ceiling = Infinity
  /** Bytes of missed events that the client can still receive; Infinity without a limit. */
  allowance = Infinity
  #isOver = false
  readonly #owner: CatchUpOwner
  /** What was read so far, and since when by the monotonic clock. */
  #events = 0
  #bytes = 0
  #since = 0

  constructor (context: ConnectionContext, owner: CatchUpOwner, outbox = new Outbox(context.outboxBytes, context.budget, owner)) {
    this.#context = context
    this.#owner = owner
    this.outbox = outbox
    context.budget.yielders.add(this)
  }

  /** Position of the log, or the ceiling. */
  get position (): number {
    return Math.min(this.ceiling, this.#context.eventLog.position)
  }

  /** The lanes from which the client would resume now; null while a gap event is pending. */
  get place (): Lanes | null {
    return this.outbox.place(this.position)
  }

  /** Removes and returns the next blocks of the outbox, about `bytes` bytes. See `Outbox.take`. */
  take (bytes: number, mark: string | null): { text: string, frames: readonly Frame[] } {
    return this.outbox.take(bytes, this.#context.eventLog.epoch, this.position, mark)
  }

  /** Sets the ceiling, or moves it to a later position. The events in between, which were not queued, are read from the log. */
  hold (ceiling: number): void {
    if (this.ceiling < ceiling) this.outbox.lagFrom(this.ceiling)
    this.ceiling = ceiling
  }

  /** Discards all frames, and reports how the replay ends. A page that is being read has no effect. */
  discard (result: 'complete' | 'closed'): void {
    this.#isOver = true
    this.#context.budget.yielders.delete(this)
    this.endReplay(result)
    this.outbox.discard()
  }

  /** See `Yielder`. Logged frames are read from the log later. */
  giveBack (): void {
    this.outbox.readLater(this.position)
  }

  /** Reports what was read, unless that is nothing. */
  endReplay (result: 'complete' | 'gap' | 'closed'): void {
    const { telemetry, options: { clock } } = this.#context
    if (this.#events > 0) telemetry.onReplay(this.#owner.clientId, this.#events, this.#bytes, clock.monotonic() - this.#since, result)
    this.#events = this.#bytes = 0
  }

  /**
   * Reads the next page of missed events into the outbox. Resolves with the reason of a gap. Rejects if the log cannot be read.
   * @param turns limits the time in each turn of the event loop; the rest of the page waits for the next turn
   * @param wants returns whether the connection receives a message
   */
  async read (broker: Broker, turns: Turns, interest: Interest, wants: (message: Message) => boolean): Promise<GapReason | null> {
    const { epoch, newest } = this.#context.eventLog
    const lane = this.outbox.ask(newest, this.position)
    if (lane === null) return null
    if (this.#events === 0) this.#since = this.#context.options.clock.monotonic()
    const page = await broker.read({ epoch, ...lane, limit: PAGE_EVENTS, interest })
    return await this.#take(page, lane, turns, wants)
  }

  async #take (page: Page, lane: { priority: EventPriority, after: number }, turns: Turns, wants: (message: Message) => boolean): Promise<GapReason | null> {
    const { outbox } = this
    const { eventLog, frames, telemetry } = this.#context
    const { priority } = lane
    let { after } = lane
    // The outbox can change while the page is read. `wants` calls code of the application, which can change it as well.
    const moved = (): boolean => this.#isOver || !outbox.isReading(priority, after)
    if (moved()) return null
    if (page.gap !== undefined) return page.gap
    let bytes = 0
    for (const message of page.messages) {
      // Later messages are not delivered on this node yet, or wait for a snapshot.
      if (message.seq > this.position) break
      if (bytes >= PAGE_BYTES) return null
      while (turns.over) {
        await turns.next()
        // Without this check, code of the application would be called for a stream that has ended.
        if (moved()) return null
      }
      const wanted = wants(message)
      if (moved()) return null
      if (wanted) {
        const frame = frames.of(message, eventLog.epoch)
        if (frame.textBytes > this.allowance) return 'limit'
        if (!outbox.refill(frame)) return null
        this.allowance -= frame.textBytes
        this.#events++
        this.#bytes += frame.textBytes
        telemetry.replayed++
        bytes += frame.bytes
      }
      after = message.seq
      outbox.advance(priority, after, this.position)
    }
    outbox.advance(priority, Math.min(page.next, this.position), this.position)
    return null
  }

  /** The cursor of the client in its standard form; null while a gap event is pending. */
  get cursor (): string | null {
    const { place } = this
    return place === null ? null : formatLanes(this.#context.eventLog.epoch, place)
  }
}
