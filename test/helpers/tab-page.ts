import { AsyncLocalStorage } from 'node:async_hooks'
import type { Test } from 'tap'
import type { Locks } from '../../lib/client/tabs/browser.js'
import { setGlobals } from './globals.js'
import { WebLocks } from './web-locks.js'

const current = new AsyncLocalStorage<TabPage>()
const never = new Promise<never>(() => {})
const Channel = BroadcastChannel

/** A page of a browser in this process, with what a page can suffer: it hangs, is frozen, is hidden, crashes. Its channels and requests are real. */
export class TabPage {
  readonly document = new EventTarget()
  visibilityState = 'visible'
  readonly #locks: WebLocks
  readonly #crash = new AbortController()
  readonly #crashed = new Promise<void>(resolve => this.#crash.signal.addEventListener('abort', () => resolve()))
  #hung: { readonly end: Promise<void>, resume (): void } | null = null

  constructor (locks: WebLocks) {
    this.#locks = locks
  }

  /** Runs a script in the page. */
  run<T> (script: () => T): T {
    return current.run(this, script)
  }

  get isHung (): boolean {
    return this.#hung !== null
  }

  get isCrashed (): boolean {
    return this.#crash.signal.aborted
  }

  /** Resolves when the page runs; never after a crash. */
  async awake (): Promise<void> {
    while (this.#hung !== null) await this.#hung.end
    if (this.isCrashed) await never
  }

  /** Receives and sends nothing, until `resume()`. */
  hang (): void {
    let resume!: () => void
    const end = new Promise<void>(resolve => { resume = resolve })
    this.#hung ??= { end, resume }
  }

  resume (): void {
    const hung = this.#hung
    this.#hung = null
    hung?.resume()
  }

  /** Ends the page at once: the browser releases its locks. */
  crash (): void {
    this.#crash.abort()
  }

  say (type: string): void {
    this.document.dispatchEvent(new Event(type))
  }

  show (state: 'visible' | 'hidden'): void {
    this.visibilityState = state
    this.say('visibilitychange')
  }

  readonly locks: Locks = {
    request: async (name, { signal, steal = false }, held) => {
      await this.awake()
      signal?.throwIfAborted()
      try {
        await this.#locks.request(name, { steal, signal: AbortSignal.any([this.#crash.signal, ...(signal === undefined ? [] : [signal])]) }, () => Promise.race([this.#crashed, this.awake().then(held)]))
      } finally {
        await this.awake()
      }
    }
  }

  readonly fetch: typeof globalThis.fetch = async (input, init) => {
    await this.awake()
    try {
      const response = await fetch(input, { ...init, signal: AbortSignal.any([init!.signal!, this.#crash.signal]) })
      const gate = new TransformStream({
        transform: async (part, controller) => {
          await this.awake()
          controller.enqueue(part)
        }
      })
      return new Response(response.body?.pipeThrough(gate) ?? null, { status: response.status, headers: response.headers })
    } finally {
      await this.awake()
    }
  }
}

/** A channel of the page that creates it. */
class PageChannel {
  readonly #page = current.getStore()!
  readonly #channel: InstanceType<typeof BroadcastChannel>
  #isClosed = false
  onmessage: (event: { data: unknown }) => void = () => {}

  constructor (name: string) {
    this.#channel = new Channel(name)
    this.#channel.onmessage = event => this.#whenAwake(() => this.onmessage(event as MessageEvent))
  }

  postMessage (message: unknown): void {
    this.#whenAwake(() => this.#channel.postMessage(message))
  }

  close (): void {
    this.#isClosed = true
    this.#channel.close()
  }

  /** At once, unless the page hangs. */
  #whenAwake (act: () => void): void {
    if (!this.#page.isHung && !this.#page.isCrashed) this.#page.run(act)
    else this.#page.awake().then(() => { if (!this.#isClosed) this.#page.run(act) })
  }
}

/** Lets this process be a browser until the test ends: what runs in a page has the globals of that page. Returns a function that opens a page. */
export function browse (t: Test): () => TabPage {
  const page = (): TabPage => current.getStore()!
  setGlobals(t, {
    navigator: { get locks () { return page().locks } },
    location: { href: 'http://localhost/' },
    document: {
      baseURI: 'http://localhost/',
      get visibilityState () { return page().visibilityState },
      addEventListener: (...args: Parameters<EventTarget['addEventListener']>) => page().document.addEventListener(...args),
      removeEventListener: (...args: Parameters<EventTarget['removeEventListener']>) => page().document.removeEventListener(...args)
    },
    BroadcastChannel: PageChannel
  })
  const locks = new WebLocks()
  return () => new TabPage(locks)
}
