import type { SSEClient } from '../../lib/client/client.js'
import { Leader, type LeaderContext } from '../../lib/client/tabs/leader.js'
import type { Join, Report } from '../../lib/client/tabs/messages.js'
import { Reading, Recent } from '../../lib/client/tabs/reading.js'
import { Roster } from '../../lib/client/tabs/roster.js'
import { turns } from '../helpers/wait.js'
import { WebLocks } from '../helpers/web-locks.js'

// The tab that reads for all, whose server and other tabs a test plays.

export const settled = async (): Promise<void> => await turns(4)
export const block = (id: string, data = id): string => `id: ${id}\ndata: ${data}\n\n`
export const blocks = (from: number, to: number): string => Array.from({ length: to - from + 1 }, (_, i) => block(`e.${from + i}`)).join('')

/** A request to the server, and its answer. */
class Asked {
  readonly url: URL
  readonly cursor: string
  readonly signal: AbortSignal
  readonly response: Promise<Response | null>
  #settle!: (response: Response | null) => void
  #fail!: (error: Error) => void
  #body!: ReadableStreamDefaultController<Uint8Array>

  constructor (url: URL, cursor: string, signal: AbortSignal) {
    this.url = url
    this.cursor = cursor
    this.signal = signal
    this.response = new Promise((resolve, reject) => {
      this.#settle = resolve
      this.#fail = reject
    })
  }

  get names (): string[] {
    return this.url.searchParams.getAll('subscription').sort()
  }

  get fresh (): string[] {
    return this.url.searchParams.getAll('fresh').sort()
  }

  async answer (response: Response | null): Promise<void> {
    this.#settle(response)
    await settled()
  }

  async refuse (status: number): Promise<void> {
    await this.answer(new Response('', { status }))
  }

  async fail (): Promise<void> {
    this.#fail(new Error('No network'))
    await settled()
  }

  /** Answers with a stream that begins with this text. */
  async open (text = ''): Promise<void> {
    await this.answer(new Response(new ReadableStream({ start: controller => { this.#body = controller } }), { headers: { 'content-type': 'text/event-stream; charset=utf-8' } }))
    await this.write(text)
  }

  async write (text: string): Promise<void> {
    this.#body.enqueue(new TextEncoder().encode(text))
    await settled()
  }

  async end (): Promise<void> {
    this.#body.close()
    await settled()
  }
}

/** A tab that reads, with a client at this cursor. */
export function start (url = 'http://localhost/sse?subscription=a', cursor = 'e.1') {
  const roster = new Roster(new WebLocks(), 'group')
  const asked: Asked[] = []
  const posts: Report[] = []
  const client = {
    request (url: URL, cursor: string, signal: AbortSignal) {
      const one = new Asked(url, cursor, signal)
      asked.push(one)
      return one.response
    }
  } as unknown as SSEClient<any>
  const reading = new Reading(new URL(url), cursor, new Recent())
  const context: { -readonly [K in keyof LeaderContext]: LeaderContext[K] } = { client, roster, reading, post: message => { posts.push(message) } }
  const leader = new Leader(context)
  roster.set('own', reading.subscriptions)
  leader.owe(reading)
  leader.connect()
  return {
    leader,
    context,
    roster,
    reading,
    asked,
    last: () => asked.at(-1)!,
    /** Another tab joins. */
    async join (tab: string, cursor: string, subscriptions: readonly string[] = ['a'], fresh: readonly string[] = []): Promise<void> {
      roster.set(tab, subscriptions)
      leader.join({ type: 'join', tab, cursor, subscriptions, fresh, isRetry: false } satisfies Join)
      await settled()
    },
    /** What the tabs were told since the last call, other than entries: to whom, and the data of what they have missed. */
    told: () => posts.splice(0).flatMap(post => post.type === 'entries' || post.type === 'lead' || post.type === 'ended'
      ? []
      : [`${post.type} ${post.to}${post.type === 'joined' ? `: ${post.slice.entries.flatMap(({ text }) => /^data: (.*)$/m.exec(text)?.[1] ?? []).join(' ')}` : ''}`]),
    entries: () => posts.flatMap(post => post.type === 'entries' ? [[post.from, post.entries.map(({ text }) => text.length > 0)]] : []),
    /** Reads what this tab's client has received. */
    async text () {
      const { value } = await (await reading.response)!.body!.getReader().read()
      return new TextDecoder().decode(value)
    }
  }
}
