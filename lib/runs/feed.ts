import type { Flushable } from '../delivery/flusher.js'
import { Frame, textOf } from '../delivery/frame.js'
import { EventPriority } from '../events/event-rules.js'
import { fitsPage, type RunEvents, type RunKey, type RunPage, type RunState, type RunStore } from '../log/run-store.js'
import { Chunk } from '../wire/chunk.js'
import { encodeIdLine } from '../wire/event-stream.js'
import { runIdPrefix } from './run-position.js'

/** The generation of no run: a read of it returns no events. */
const NO_GENERATION = 0

/** A stretch of a run, which its readers on this node share. */
export class FeedPage {
  readonly state: RunState | null
  readonly frames: readonly Frame[]
  #chunk: Chunk | null = null

  constructor (state: RunState | null, frames: readonly Frame[]) {
    this.state = state
    this.frames = frames
  }

  /** The frames as one write, made once. */
  get chunk (): Chunk {
    return (this.#chunk ??= new Chunk(textOf(this.frames), this.frames.reduce((bytes, { textBytes }) => bytes + textBytes, 0)))
  }
}

/** A reader of a feed. */
export interface FeedReader {
  /** Handles that the run may have news. */
  wake (): void
}

/**
 * The readers of one run on this node. Readers at the same position share one read of the store and its frames. They are woken at the
 * end of the turn: writes to many clients in a row cost less than single ones.
 */
export class RunFeed implements Flushable {
  next: Flushable | null = null
  readonly key: RunKey
  readonly #store: RunStore
  readonly #mark: (feed: RunFeed) => void
  readonly #readers = new Set<FeedReader>()
  /** What was last read, and the page that begins there; null if there were news since. */
  #page: FeedPage | Promise<FeedPage> | null = null
  #generation = NO_GENERATION
  #after = 0
  /** The new events of this turn, which need not be read; null if there are none, or others too. */
  #news: RunEvents | null = null
  #state: RunState | null = null
  /** Beginning of the ids of the generation that was last read. */
  #prefix = ''
  #prefixOf = NO_GENERATION
  /** Whether there were news since the last `poll`. */
  #isFresh = true
  /** Whether the store was read since the last `poll`. */
  #hasRead = false

  /** @param mark arranges that `flush()` is called at the end of the turn */
  constructor (store: RunStore, key: RunKey, mark: (feed: RunFeed) => void) {
    this.#store = store
    this.key = key
    this.#mark = mark
  }

  /** Whether nobody reads. */
  get isEmpty (): boolean {
    return this.#readers.size === 0
  }

  /** Adds a reader. */
  join (reader: FeedReader): void {
    this.#readers.add(reader)
  }

  /** Removes a reader. Returns whether it was the last. */
  leave (reader: FeedReader): boolean {
    this.#readers.delete(reader)
    return this.isEmpty
  }

  /** Handles that the run has news. Pages that are being read may lack them. `events`: the new events, if they are known. */
  tell (events: RunEvents | null = null): void {
    this.#isFresh = true
    this.#page = null
    // The first news of this turn.
    if (this.next === null) this.#news = events
    else this.#news = this.#news !== null && events !== null && follows(this.#news, events) ? { ...this.#news, texts: [...this.#news.texts, ...events.texts] } : null
    this.#mark(this)
  }

  /** Wakes the readers. */
  flush (): void {
    for (const reader of this.#readers) reader.wake()
    if (this.#news === null) return
    // A page that outlives its turn would be moved to the old generation of the heap, and all that follow with it.
    this.#news = null
    this.#page = null
  }

  /**
   * Wakes the readers if there were no news since the last call: they can have been lost, and so can the producer. Reports that there
   * are readers if none has read: their clients can be slow.
   */
  poll (): void {
    if (!this.#isFresh) this.tell()
    this.#isFresh = false
    if (!this.#hasRead) this.#report().catch(() => {})
    this.#hasRead = false
  }

  async #report (): Promise<void> {
    await this.#store.read(this.key, NO_GENERATION, 0, true)
  }

  /** Reads the events of a generation after number `after`. Throws or rejects if the store cannot be reached. */
  read (generation: number, after: number): FeedPage | Promise<FeedPage> {
    if (this.#page !== null && this.#generation === generation && this.#after === after) return this.#page
    this.#generation = generation
    this.#after = after
    return (this.#page = this.#told(generation, after) ?? this.#read(generation, after))
  }

  /** Returns the page of the news, if they begin there and are no more than a page. */
  #told (generation: number, after: number): FeedPage | null {
    const news = this.#news
    const state = this.#state
    if (news === null || news.generation !== generation || news.after !== after || state?.generation !== generation || state.status !== 'running' || !fitsPage(news.texts)) return null
    return this.#framed({ state: { ...state, events: after + news.texts.length }, texts: news.texts }, generation, after)
  }

  #read (generation: number, after: number): FeedPage | Promise<FeedPage> {
    this.#hasRead = true
    const read = this.#store.read(this.key, generation, after, true)
    if (!(read instanceof Promise)) return this.#stored(read, generation, after)
    const page = read.then(page => this.#stored(page, generation, after))
    page.catch(() => { if (this.#page === page) this.#page = null })
    return page
  }

  #stored (page: RunPage, generation: number, after: number): FeedPage {
    this.#state = page.state
    return this.#framed(page, generation, after)
  }

  #framed ({ state, texts }: RunPage, generation: number, after: number): FeedPage {
    if (generation !== this.#prefixOf) {
      this.#prefix = runIdPrefix(generation)
      this.#prefixOf = generation
    }
    const prefix = this.#prefix
    return new FeedPage(state, texts.map((text, index) => new Frame(encodeIdLine(`${prefix}${after + 1 + index}`), text, EventPriority.NORMAL)))
  }
}

function follows (earlier: RunEvents, { generation, after }: RunEvents): boolean {
  return generation === earlier.generation && after === earlier.after + earlier.texts.length
}
