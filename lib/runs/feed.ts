import { Frame } from '../delivery/frame.js'
import { EventPriority } from '../events/event-rules.js'
import { runKeyOf, type RunEvents, type RunKey, type RunPage, type RunState, type RunStore } from '../log/run-store.js'
import { encodeIdLine } from '../wire/event-stream.js'
import { formatRunId } from './run-position.js'

/** The generation of no run: a read of it returns no events. */
const NO_GENERATION = 0

/** A stretch of a run, as frames that its readers on this node share. */
export interface FeedPage {
  readonly state: RunState | null
  readonly frames: readonly Frame[]
}

/** A reader of a feed. */
export interface FeedReader {
  /** Handles that the run may have news. */
  wake (): void
}

/** The readers of one run on this node. Readers at the same position share one read of the store and its frames. */
export class RunFeed {
  readonly key: RunKey
  readonly id: string
  readonly #store: RunStore
  readonly #readers = new Set<FeedReader>()
  /** The state of the last page. */
  #state: RunState | null = null
  /** The page after this number of this generation; null if there were news since. */
  #page: FeedPage | Promise<FeedPage> | null = null
  #generation = 0
  #after = 0
  /** Whether there were news since the last `poll`. */
  #isFresh = true
  /** Whether the store was read since the last `poll`. */
  #hasRead = false

  constructor (store: RunStore, key: RunKey) {
    this.#store = store
    this.key = key
    this.id = runKeyOf(key)
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

  /** Wakes the readers, because the run has news. Pages that are being read may lack them. `events`: the next page, which need not be read. */
  wake (events?: RunEvents): void {
    this.#isFresh = true
    this.#page = null
    if (events !== undefined) this.#keep(events)
    for (const reader of this.#readers) reader.wake()
  }

  #keep ({ generation, after, texts }: RunEvents): void {
    const state = this.#state
    if (state?.generation !== generation || state.status !== 'running') return
    this.#page = framed({ state: { ...state, events: after + texts.length }, texts }, generation, after)
    this.#generation = generation
    this.#after = after
  }

  /**
   * Wakes the readers if there were no news since the last call: they can have been lost, and so can the producer. Reports that there
   * are readers if none has read: their clients can be slow.
   */
  poll (): void {
    if (!this.#isFresh) this.wake()
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
    this.#hasRead = true
    const read = this.#store.read(this.key, generation, after, true)
    const page = read instanceof Promise ? read.then(page => this.#framed(page, generation, after)) : this.#framed(read, generation, after)
    this.#page = page
    this.#generation = generation
    this.#after = after
    if (page instanceof Promise) page.catch(() => { if (this.#page === page) this.#page = null })
    return page
  }

  #framed (page: RunPage, generation: number, after: number): FeedPage {
    this.#state = page.state
    return framed(page, generation, after)
  }
}

function framed ({ state, texts }: RunPage, generation: number, after: number): FeedPage {
  return { state, frames: texts.map((text, index) => new Frame(encodeIdLine(formatRunId(generation, after + 1 + index)), text, EventPriority.NORMAL)) }
}
