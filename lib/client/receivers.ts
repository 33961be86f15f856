import type { ControlEvents } from './catalogue-types.js'
import type { ReadEvent } from './client-event.js'
import type { EventsOptions } from './client-options.js'
import { endError, SSEClientError } from './errors.js'
import { EventQueue } from './event-queue.js'
import { CLOSED, type ClosedState } from './state.js'

/** A function that is called with what has happened. */
export type Listener = (...args: any[]) => void

/** Ends of a stream after which its loops end normally. */
const NORMAL_ENDS = new Set([CLOSED, 'source-end', 'no-content'])
/** The others, such as `sse:ping`, are of no use to applications. */
const SHOWN_CONTROL_EVENTS: ReadonlySet<string> = new Set<keyof ControlEvents>(['sse:gap', 'sse:unsubscribed', 'sse:join', 'sse:leave'])

/** The parts of an application that receive what a client reads: listeners, and loops over `events()`. */
export class Receivers {
  readonly #listeners = new Map<string, Set<Listener>>()
  readonly #loops = new Set<{ readonly name: string | undefined, readonly queue: EventQueue<any> }>()

  /** Adds a listener, and returns the function that removes it. A listener that is added twice is called twice. */
  add (key: string, listener: Listener): () => void {
    let listeners = this.#listeners.get(key)
    if (listeners === undefined) this.#listeners.set(key, listeners = new Set())
    const own: Listener = (...args) => listener(...args)
    listeners.add(own)
    return () => { listeners.delete(own) }
  }

  /** Calls the listeners. An exception of one is reported as uncaught, and does not stop the others. */
  call (key: string, ...args: unknown[]): void {
    for (const listener of this.#listeners.get(key) ?? []) {
      try {
        listener(...args)
      } catch (error) {
        queueMicrotask(() => { throw error })
      }
    }
  }

  /** Begins a loop over the events with this name, or over all. */
  loop (name?: string, { maxBuffered = 1_000 }: EventsOptions = {}): EventQueue<any> {
    const queue = new EventQueue<any>(maxBuffered, () => new SSEClientError('SSE_ERR_CLIENT_OVERFLOW', `maxBuffered is ${maxBuffered}`), () => { this.#loops.delete(loop) })
    const loop = { name, queue }
    this.#loops.add(loop)
    return queue
  }

  /** Passes on an event. */
  dispatch (event: ReadEvent): void {
    const { event: name } = event
    if (name.startsWith('sse:') && !SHOWN_CONTROL_EVENTS.has(name)) return
    this.call(`event ${name}`, event.data, event)
    if (name === 'data') this.call(`data ${event.data?.resource}`, event.data?.data, event)
    for (const { name: wanted, queue } of this.#loops) if (wanted === undefined || wanted === name) queue.push(event)
  }

  /** Ends all loops: normally, or with an error if the server has closed the stream or refused the client. */
  end (state: ClosedState): void {
    const error = NORMAL_ENDS.has(state.reason) ? undefined : endError('SSE_ERR_CLIENT_CLOSED', state)
    for (const { queue } of this.#loops) queue.end(error)
  }
}
