import type { Test } from 'tap'
import type { ClientOptions } from '../../lib/client/index.js'
import { shareTabs, type ShareTabsOptions } from '../../lib/client/tabs.js'
import type { Message, SentMessage } from '../../lib/client/tabs/messages.js'
import type { Entry } from '../../lib/client/tabs/relay.js'
import { TestClock } from '../../lib/testing/test-clock.js'
import { kClock } from '../../lib/util/clock.js'
import { setGlobals } from '../helpers/globals.js'
import { turns, until } from '../helpers/wait.js'
import { WebLocks } from '../helpers/web-locks.js'
import { counted } from './timers.js'

// One tab, whose group a test plays.

const URL_OF_STREAM = 'http://localhost/sse'
export const GROUP = `fastify-sse-manager tabs 1 ${JSON.stringify(['ada', URL_OF_STREAM])}`

class Document extends EventTarget {
  visibilityState = 'visible'
  readonly baseURI = 'http://localhost/'
}

/** A request of the tab to the server. */
interface Request {
  readonly url: URL
  readonly cursor: string | undefined
  readonly signal: AbortSignal
  /** Answers with a stream that begins with this text. */
  open (text: string): void
  answer (response: Response): void
}

/** A tab that shares, and what a test does as the rest of its group: it reads for all, if the tab is led. */
export function start (t: Test, options: Partial<ShareTabsOptions> = {}, isLed = true) {
  const locks = new WebLocks()
  const document = new Document()
  setGlobals(t, { navigator: { locks }, location: { href: 'http://localhost/' }, document })
  const time = new TestClock()
  const { clock, timers } = counted(time.clock)
  const requests: Request[] = []
  const fetch = ((input: URL, init: RequestInit) => new Promise<Response>((resolve, reject) => {
    const signal = init.signal!
    signal.addEventListener('abort', () => reject(signal.reason))
    requests.push({
      url: new URL(input),
      cursor: (init.headers as Record<string, string>)['last-event-id'],
      signal,
      answer: resolve,
      open (text) {
        const body = new ReadableStream<Uint8Array>({
          start (controller) {
            controller.enqueue(new TextEncoder().encode(text))
            signal.addEventListener('abort', () => { controller.error(signal.reason) })
          }
        })
        resolve(new Response(body, { headers: { 'content-type': 'text/event-stream' } }))
      }
    })
  })) as typeof globalThis.fetch
  // This test reads for the group, until it lets go.
  let release = (): void => {}
  const held = !isLed ? Promise.resolve() : locks.request(GROUP, {}, () => new Promise<void>(resolve => { release = resolve }))
  let isStolen = false
  held.catch(() => { isStolen = true })
  const channel = new BroadcastChannel(GROUP)
  const heard: SentMessage[] = []
  channel.onmessage = ({ data }: any) => { heard.push(data) }
  const client = shareTabs<any>(URL_OF_STREAM, { user: 'ada', subscriptions: ['a'], fetch, [kClock]: clock, ...options } as ShareTabsOptions & ClientOptions)
  t.teardown(() => {
    client.close()
    channel.close()
  })
  const seen: unknown[] = []
  const states: string[] = []
  client.on('n', n => { seen.push(n) })
  client.onState(({ name }) => { states.push(name) })
  const of = <T extends Message['type']>(type: T) => heard.filter((message): message is Extract<SentMessage, { type: T }> => message.type === type)
  const say = (message: SentMessage): void => channel.postMessage(message)
  return {
    client,
    document,
    heard,
    locks,
    of,
    release: () => release(),
    requests,
    say,
    seen,
    states,
    time,
    timers,
    isStolen: () => isStolen,
    is: async (name: string) => { await until(() => client.state.name === name, undefined, `the client is ${name}`) },
    asked: async (count: number) => {
      await until(() => requests.length === count, undefined, `${count} requests`)
      return requests.at(-1)!
    },
    /** Waits until the tab has said this so often, and returns the last. */
    hears: async <T extends Message['type']>(type: T, count: number) => {
      await until(() => of(type).length >= count, undefined, `${count} ${type}`)
      t.equal(of(type).length, count)
      return of(type).at(-1)!
    },
    /** Waits until the tab has received all that was said to it. */
    async settled () {
      await turns(30)
    },
    /** Reads for the group in this term, and answers the tab, which then has the cursor `e.1`. */
    async lead (term: number, entries: Entry[] = []) {
      await until(() => of('join').length > 0, undefined, 'the tab joins')
      const before = of('join').length
      say({ type: 'lead', term, tabs: [] })
      await until(() => of('join').some(join => join.term === term), undefined, 'the tab joins')
      t.equal(of('join').length, before + 1)
      const { tab } = of('join').at(-1)!
      say({ type: 'joined', term, to: tab, slice: { previous: 'e.1', entries, from: 0, next: 10 } })
      return tab
    }
  }
}

export const entry = (id: string, n: number): Entry => ({ id, text: `id: ${id}\nevent: n\ndata: ${n}\n\n` })
export const OPEN = ': stream keep-alive=1000\n\nretry: 3000\n\nid: e.1\n\n'
