import { SSEClientError } from './errors.js'
import { resolveURL } from './page.js'

/** What a client asks for: a URL, subscriptions, and which of them the client has no state of. */
export class Endpoint {
  readonly url: URL
  #subscriptions: ReadonlySet<string>
  /** Subscriptions that were added, until the server has sent the next id: the snapshot has arrived then, if there is one. */
  readonly #fresh = new Set<string>()

  /** @throws SSE_ERR_CLIENT_OPTION for an invalid URL, and for a text as subscriptions */
  constructor (url: string | URL, subscriptions: Iterable<string>) {
    try {
      this.url = resolveURL(url)
    } catch {
      throw new SSEClientError('SSE_ERR_CLIENT_OPTION', `${String(url)} is not a URL; outside of a page it must be absolute`)
    }
    this.#subscriptions = setOf(subscriptions)
  }

  /** Identifies what a cursor of this endpoint covers. */
  get key (): string {
    return [this.url.href, ...[...this.#subscriptions].sort()].join(' ')
  }

  /** Replaces the subscriptions. Returns whether they have changed. @throws SSE_ERR_CLIENT_OPTION */
  replace (subscriptions: Iterable<string>): boolean {
    const before = this.#subscriptions
    const after = this.#subscriptions = setOf(subscriptions)
    for (const subscription of after) if (!before.has(subscription)) this.#fresh.add(subscription)
    for (const subscription of before) if (!after.has(subscription)) this.#fresh.delete(subscription)
    return before.size !== after.size || [...after].some(subscription => !before.has(subscription))
  }

  /** Records that the client has the state of all subscriptions. */
  settle (): void {
    this.#fresh.clear()
  }

  /** Returns the URL of the next request. */
  request (lastEventId: string): URL {
    const url = new URL(this.url)
    const { searchParams } = url
    for (const subscription of this.#subscriptions) searchParams.append('subscription', subscription)
    if (lastEventId !== '') {
      // The header has a newer one. The server ignores `fresh` beside a cursor that is outdated.
      searchParams.delete('lastEventId')
      for (const subscription of this.#fresh) searchParams.append('fresh', subscription)
    }
    return url
  }
}

/** A text would become a set of its letters. */
function setOf (subscriptions: Iterable<string>): ReadonlySet<string> {
  if (typeof subscriptions === 'string') throw new SSEClientError('SSE_ERR_CLIENT_OPTION', 'subscriptions must be an array')
  return new Set(subscriptions)
}
