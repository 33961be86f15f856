import type { Notification } from '../events/catalogue.js'
import type { Clock, Timer } from '../util/clock.js'
import { BackOff } from './back-off.js'
import type { AnyCatalogue, AnyEvent, ClientGap, DefaultCatalogue, EventsOf, PresenceChange, ResourceEvent, ResourcesOf, Unsubscribed } from './catalogue-types.js'
import type { ClientEvent } from './client-event.js'
import { CLIENT_OPTIONS, type ClientOptions, type EventsOptions } from './client-options.js'
import { Endpoint } from './endpoint.js'
import { headersOf, resolveOptions, type ResolvedRequestOptions } from './options.js'
import { isHidden, loadCursor, saveCursor, watchPage } from './page.js'
import { Receivers } from './receivers.js'
import { CLOSED, type ClientState, type ClosedState } from './state.js'
import { readStream, type Ending } from './stream.js'
import type { Watchdog } from './watchdog.js'

/** Reasons of a wait that the client's network has caused. A change of the network ends such a wait. */
const NETWORK = ['network', 'timeout']
/** Reasons of a wait that ends when the page is shown. */
const SHOWN = [...NETWORK, 'hidden']

/**
 * A connection to a stream of events that reconnects and resumes by itself. `createClient()` creates it. Each `on…` method returns a
 * function that removes the listener. An exception of a listener is reported as uncaught, and does not stop the others.
 */
export class SSEClient<C extends AnyCatalogue = DefaultCatalogue> {
  /** @internal */
  readonly endpoint: Endpoint
  readonly #options: ResolvedRequestOptions & ClientOptions
  readonly #receivers = new Receivers()
  readonly #backOff: BackOff
  #unwatch: (() => void) | null = null
  #state: ClientState = { name: 'connecting' }
  #lastEventId: string
  #attempt = new AbortController()
  /** Settles when the last attempt has ended: attempts never overlap. */
  #ended: Promise<unknown> = Promise.resolve()
  #watchdog: Watchdog | null = null
  #timer: Timer | null = null
  /** Whether `close()` was called. */
  #isClosed = false
  /** Whether the attempt follows the back-off, and not a call or an event of the page. @internal */
  isRetry = false
  /** @internal */
  readonly clock: Clock
  /** Sends the attempts: this client itself, or the tabs that share. @internal */
  transport: Pick<SSEClient, 'request'> = this

  /** @internal */
  constructor (url: string | URL, options: ClientOptions) {
    this.#options = { ...options, ...resolveOptions(options, CLIENT_OPTIONS) }
    this.clock = this.#options.clock
    this.endpoint = new Endpoint(url, options.subscriptions ?? [])
    this.#backOff = new BackOff(this.#options.maxRetryMs)
    this.#lastEventId = options.lastEventId ?? ''
    if (options.persist === 'session') this.#lastEventId = loadCursor(this.endpoint.key) || this.#lastEventId
    this.#start()
  }

  /** The state of the connection. The object is the same until the state changes. */
  get state (): ClientState {
    return this.#state
  }

  /** The cursor: the newest id that was received. Empty without one. */
  get lastEventId (): string {
    return this.#lastEventId
  }

  /** Calls the listener for each event with this name. */
  on<N extends keyof EventsOf<C> & string> (event: N, listener: (data: EventsOf<C>[N], event: ClientEvent<N, EventsOf<C>[N]>) => void): () => void {
    return this.#receivers.add(`event ${event}`, listener)
  }

  /** Calls the listener for each `broadcastData()` and `sendData()` of this resource. */
  onData<R extends keyof ResourcesOf<C> & string> (resource: R, listener: (data: ResourcesOf<C>[R], event: ResourceEvent<C, R>) => void): () => void {
    return this.#receivers.add(`data ${resource}`, listener)
  }

  /** Calls the listener for each `broadcastNotification()` and `sendNotification()`. */
  onNotification (listener: (notification: Notification, event: ClientEvent<'notification', Notification>) => void): () => void {
    return this.#receivers.add('event notification', listener)
  }

  /** Calls the listener when the state has changed. */
  onState (listener: (state: ClientState) => void): () => void {
    return this.#receivers.add('state', listener)
  }

  /** Calls the listener when events are lost that the server cannot send any more: load the current state, unless a snapshot follows. */
  onGap (listener: (gap: ClientGap) => void): () => void {
    return this.#receivers.add('event sse:gap', listener)
  }

  /** Calls the listener when the server has taken a subscription away. */
  onUnsubscribed (listener: (unsubscribed: Unsubscribed) => void): () => void {
    return this.#receivers.add('event sse:unsubscribed', listener)
  }

  /** Calls the listener when a user joins a topic. Needs the option `presenceEvents` of the server. */
  onJoin (listener: (change: PresenceChange) => void): () => void {
    return this.#receivers.add('event sse:join', listener)
  }

  /** Calls the listener when a user leaves a topic. Needs the option `presenceEvents` of the server. */
  onLeave (listener: (change: PresenceChange) => void): () => void {
    return this.#receivers.add('event sse:leave', listener)
  }

  /**
   * Returns the events that arrive from now on: those with this name, or all with `sse:gap` among them. Ends when `close()` is called or
   * the server has no more events.
   * @throws in the loop: SSE_ERR_CLIENT_OVERFLOW when more than `maxBuffered` events are unread; SSE_ERR_CLIENT_REFUSED and
   * SSE_ERR_CLIENT_CLOSED when the server refuses the client, or closes the stream for good
   * @example
   * ```ts
   * for await (const { data } of client.events('chat_message')) show(data)
   * ```
   */
  events (): AsyncIterableIterator<AnyEvent<C>, undefined>
  events (event: undefined, options: EventsOptions): AsyncIterableIterator<AnyEvent<C>, undefined>
  events<N extends keyof EventsOf<C> & string> (event: N, options?: EventsOptions): AsyncIterableIterator<ClientEvent<N, EventsOf<C>[N]>, undefined>
  events (name?: string, options?: EventsOptions): AsyncIterableIterator<any, undefined> {
    const loop = this.#receivers.loop(name, options)
    if (this.#state.name === 'closed') this.#receivers.end(this.#state)
    return loop
  }

  /**
   * Replaces the option `subscriptions`: connects again at the cursor with the new ones. Those that are added begin with their snapshot if
   * the server sends one, otherwise with the events after the cursor. While the state is `waiting`, the next attempt names the new ones.
   * When it is `closed`, for example because the server has refused the former subscriptions, the client connects again, except after
   * `close()`. Without a change nothing happens.
   * @throws SSE_ERR_CLIENT_OPTION for a text instead of an array
   */
  setSubscriptions (subscriptions: readonly string[]): void {
    if (this.endpoint.replace(subscriptions) && this.#state.name !== 'waiting' && !this.#isClosed) this.#start()
  }

  /** Disconnects and connects again at once, also after `closed`: for example when the user has signed in again. Resumes after the cursor. */
  reconnect (): void {
    if (this.#state.name === 'connecting') return
    this.#backOff.reset()
    this.#start()
  }

  /** Disconnects for good. The state becomes `closed` with the reason `client`, unless it is `closed` already. */
  close (): void {
    this.#isClosed = true
    this.#finish({ name: 'closed', reason: CLOSED })
  }

  #start (): void {
    this.#isClosed = false
    const { pauseWhenHidden = false } = this.#options
    this.#unwatch ??= watchPage({
      online: () => this.#state.name === 'open' ? this.reconnect() : this.#endWait(NETWORK),
      visible: () => {
        this.#watchdog?.check()
        this.#endWait(SHOWN)
      },
      hidden: () => { if (pauseWhenHidden) this.#pause() },
      frozen: () => this.#pause(),
      thawed: () => this.#endWait(SHOWN)
    })
    if (pauseWhenHidden && isHidden()) this.#pause()
    else this.#connect()
  }

  #connect (isRetry = false): void {
    this.#stop()
    this.isRetry = isRetry
    const attempt = this.#attempt = new AbortController()
    this.#become({ name: 'connecting' })
    this.#ended = this.#ended.then(async () => {
      if (attempt.signal.aborted) return
      const ending = await this.#read(attempt.signal)
      if (!attempt.signal.aborted) this.#wait(ending)
    })
  }

  /** Ends the attempt or the wait. */
  #stop (): void {
    this.#attempt.abort()
    this.clock.cancel(this.#timer)
  }

  #read (signal: AbortSignal): Promise<Ending> {
    const { timeoutMs, persist } = this.#options
    return readStream({
      send: signal => this.transport.request(this.endpoint.request(this.#lastEventId), this.#lastEventId, signal),
      signal,
      clock: this.clock,
      timeoutMs,
      watched: watchdog => { this.#watchdog = watchdog },
      sink: {
        open: () => this.#become({ name: 'open' }),
        retry: ms => { this.#backOff.retryMs = ms },
        lastEventId: id => {
          this.#lastEventId = id
          this.endpoint.settle()
        },
        event: event => this.#receivers.dispatch(event),
        read: () => { if (persist === 'session') saveCursor(this.endpoint.key, this.#lastEventId) }
      }
    })
  }

  /** Sends a request with the credentials of this client. Resolves with null if there are none. @internal */
  async request (url: URL, lastEventId: string, signal: AbortSignal): Promise<Response | null> {
    const { ticket, credentials, fetch } = this.#options
    const value = await ticket?.({ signal })
    if (value === null) return null
    const headers = await headersOf(this.#options, signal, lastEventId)
    if (headers === null) return null
    if (value !== undefined) url.searchParams.set('ticket', value)
    // As an EventSource does. The types of Node.js do not know `cache`.
    return await fetch(url, { headers, credentials, signal, cache: 'no-store' } as RequestInit)
  }

  #wait ({ isFinal, reason, status, code, retryAfterMs, openMs }: Ending): void {
    const cause = { reason, ...(status !== undefined && { status }), ...(code !== undefined && { code }) }
    if (isFinal) return this.#finish({ name: 'closed', ...cause })
    this.#stop()
    const retryInMs = this.#backOff.next(openMs, retryAfterMs)
    this.#timer = this.clock.after(retryInMs, () => this.#connect(true))
    this.#become({ name: 'waiting', retryInMs, ...cause })
  }

  /** Disconnects until the page is shown. */
  #pause (): void {
    this.#stop()
    this.#become({ name: 'waiting', retryInMs: null, reason: 'hidden' })
  }

  /** Connects at once if the client waits for one of these reasons. A server that has asked to wait is not asked earlier. */
  #endWait (reasons: readonly string[]): void {
    if (this.#state.name === 'waiting' && reasons.includes(this.#state.reason)) this.#connect()
  }

  #finish (state: ClosedState): void {
    if (this.#state.name === 'closed') return
    this.#stop()
    this.#unwatch?.()
    this.#unwatch = null
    this.#become(state)
    this.#receivers.end(state)
  }

  #become (state: ClientState): void {
    this.#state = state
    this.#receivers.call('state', state)
  }
}
