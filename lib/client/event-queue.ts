/** Events that one loop reads. It ends with an error instead of holding more than `maxBuffered` unread ones. */
export class EventQueue<T> implements AsyncIterableIterator<T, undefined> {
  readonly #maxBuffered: number
  readonly #overflow: () => Error
  readonly #onClose: () => void
  #items: T[] = []
  readonly #readers: { resolve (result: IteratorResult<T, undefined>): void, reject (error: unknown): void }[] = []
  #end: { error: unknown } | null = null
  #onDrained: (() => void) | null = null

  /** @param onClose called once, when the queue has ended or its loop was left */
  constructor (maxBuffered: number, overflow: () => Error, onClose: () => void) {
    this.#maxBuffered = maxBuffered
    this.#overflow = overflow
    this.#onClose = onClose
  }

  push (item: T): void {
    if (this.#end !== null) return
    const reader = this.#readers.shift()
    if (reader !== undefined) reader.resolve({ value: item, done: false })
    else if (this.#items.length >= this.#maxBuffered) this.end(this.#overflow())
    else this.#items.push(item)
  }

  /** Ends the loop after what is buffered: normally, or by throwing the error. */
  end (error?: unknown): void {
    if (this.#end !== null) return
    this.#end = { error }
    for (const reader of this.#readers) this.#finish(reader)
    this.#onDrained?.()
    this.#onClose()
  }

  /** Resolves when everything is read, or nothing more is. */
  async drained (): Promise<void> {
    if (this.#items.length > 0 && this.#end === null) await new Promise<void>(resolve => { this.#onDrained = resolve })
  }

  next (): Promise<IteratorResult<T, undefined>> {
    if (this.#items.length > 0) {
      const value = this.#items.shift()!
      if (this.#items.length === 0) this.#onDrained?.()
      return Promise.resolve({ value, done: false })
    }
    return new Promise((resolve, reject) => {
      if (this.#end === null) this.#readers.push({ resolve, reject })
      else this.#finish({ resolve, reject })
    })
  }

  return (): Promise<IteratorResult<T, undefined>> {
    this.#items = []
    this.end()
    return Promise.resolve({ value: undefined, done: true })
  }

  [Symbol.asyncIterator] (): this {
    return this
  }

  /** The error is thrown once; afterwards the iterator is done, as a generator is. */
  #finish ({ resolve, reject }: { resolve (result: IteratorResult<T, undefined>): void, reject (error: unknown): void }): void {
    const { error } = this.#end!
    this.#end = { error: undefined }
    if (error === undefined) resolve({ value: undefined, done: true })
    else reject(error)
  }
}
