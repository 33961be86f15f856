import { covers, isIncomplete } from './cursors.js'

/** A block of a stream, and the cursor after it, if it has one. Without text: a stream begins after this cursor. */
export interface Entry {
  readonly text: string
  readonly id: string | null
}

/** What a tab is sent that joins. */
export interface Slice {
  /** The cursor before the entries. */
  readonly previous: string
  readonly entries: readonly Entry[]
  /** The number of the first entry, and that of the first one that follows. */
  readonly from: number
  readonly next: number
}

const MAX_ENTRIES = 1_000
/** Maximum length of the texts that a tab keeps, in characters. */
export const MAX_CHARS = 512 * 1024
const GAP = /^event: ?sse:gap$/m

/** The newest blocks of the stream that one tab reads for all, numbered from 0. */
export class Relay {
  #entries: Entry[] = []
  /** The number of the first entry. */
  #first = 0
  /** The cursor before the first entry; empty if there is none. */
  #base = ''
  #chars = 0
  #decoder!: InstanceType<typeof TextDecoder>
  #rest!: string
  /** The cursor after which the stream begins. */
  #asked!: string
  /** The number of the entry at which the stream begins. */
  begin = 0

  /** The number of the next entry. */
  get next (): number {
    return this.#first + this.#entries.length
  }

  /** The cursor after all entries; empty without one. */
  get cursor (): string {
    return this.#entries.findLast(({ id }) => id !== null)?.id ?? this.#base
  }

  /** Whether the stream goes on in its log. A server can repeat the cursor that it was asked for before it tells that the log was lost. */
  get isLive (): boolean {
    const entries = this.#entries.slice(this.begin - this.#first + 1)
    const gap = entries.findLastIndex(({ text }) => GAP.test(text))
    return entries.slice(gap + 1).some(({ id }, i, { length }) => id !== null && (i < length - 1 || !covers(this.#asked, id)))
  }

  /** A stream begins that continues after this cursor. */
  start (cursor: string): Entry[] {
    this.#decoder = new TextDecoder()
    this.#rest = ''
    this.#asked = cursor
    if (this.next === 0) this.#base = cursor
    this.begin = this.next
    return this.#add([{ text: '', id: cursor }])
  }

  /** Takes a part of the stream, and returns the blocks that are complete. */
  push (bytes: Uint8Array): Entry[] {
    const blocks = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split('\n\n')
    this.#rest = blocks.pop()!
    return this.#add(blocks.map(block => ({ text: `${block}\n\n`, id: /^id: ?(.*)$/m.exec(block)?.[1] ?? null })))
  }

  /** Returns what a tab at this cursor has not received; null if it is not kept any more. `lacksState`: of what the current stream was asked for. */
  after (cursor: string, lacksState: boolean): Slice | null {
    const last = this.#entries.findLastIndex(({ id }) => id !== null && covers(cursor, id))
    if (last < 0 && !covers(cursor, this.#base)) return null
    if (lacksState && this.begin < this.#first) return null
    let isState = false
    // Events without an id are not sent again: the tab may have received them. But a state can consist of several, of which only the last has an id.
    return this.#slice(last + 1, last < 0 ? this.#base : this.#entries[last]!.id!, ({ id, text }, number) => {
      isState ||= GAP.test(text)
      const isWanted = id !== null || isState || (lacksState && number > this.begin)
      if (id !== null && !isIncomplete(id)) isState = false
      return isWanted
    })
  }

  /** Returns all of the current stream; null if its beginning is not kept any more. */
  fromBegin (): Slice | null {
    return this.begin < this.#first ? null : this.#slice(this.begin - this.#first, '', () => true)
  }

  #slice (at: number, previous: string, isWanted: (entry: Entry, number: number) => boolean): Slice {
    const from = this.#first + at
    return { previous, entries: this.#entries.slice(at).filter((entry, i) => isWanted(entry, from + i)), from, next: this.next }
  }

  #add (entries: Entry[]): Entry[] {
    for (const entry of entries) {
      this.#entries.push(entry)
      this.#chars += entry.text.length
    }
    while (this.#entries.length > MAX_ENTRIES || this.#chars > MAX_CHARS) {
      const { text, id } = this.#entries.shift()!
      this.#first++
      this.#chars -= text.length
      // A tab that needs a gap which is not kept any more must ask the server.
      this.#base = id ?? (GAP.test(text) ? '' : this.#base)
    }
    return entries
  }
}
