/** What a page has and Node.js does not. The types of the DOM are not loaded: they would become part of the types of the server. */
interface Page {
  addEventListener? (type: string, listener: (event: { persisted?: boolean }) => void): void
  removeEventListener? (type: string, listener: (event: { persisted?: boolean }) => void): void
  readonly document?: Pick<Page, 'addEventListener' | 'removeEventListener'> & { readonly visibilityState: string, readonly baseURI: string }
  readonly location?: { readonly href: string }
  readonly sessionStorage?: { getItem (key: string): string | null, setItem (key: string, value: string): void, removeItem (key: string): void }
}

const page = globalThis as unknown as Page

/** What can happen to a page. In a worker and in Node.js, what does not exist does not happen. */
export interface PageListener {
  /** The machine has a network again. */
  online (): void
  /** The page is visible again. */
  visible (): void
  /** The page is no longer visible. */
  hidden (): void
  /** The page enters the back-forward cache. */
  frozen (): void
  /** The page has left the back-forward cache. */
  thawed (): void
}

/** Calls the listener until the returned function is called. */
export function watchPage ({ online, visible, hidden, frozen, thawed }: PageListener): () => void {
  const { document } = page
  const watched = [
    [page, 'online', online],
    [page, 'pagehide', ({ persisted }: { persisted?: boolean }) => { if (persisted === true) frozen() }],
    [page, 'pageshow', ({ persisted }: { persisted?: boolean }) => { if (persisted === true) thawed() }],
    [document, 'visibilitychange', () => document?.visibilityState === 'hidden' ? hidden() : visible()]
  ] as const
  for (const [target, type, listener] of watched) target?.addEventListener?.(type, listener)
  return () => { for (const [target, type, listener] of watched) target?.removeEventListener?.(type, listener) }
}

/** Returns whether the page is hidden. */
export function isHidden (): boolean {
  return page.document?.visibilityState === 'hidden'
}

/** Resolves a URL as an `EventSource` does. @throws TypeError for an invalid URL, and in Node.js for a relative one */
export function resolveURL (url: string | URL): URL {
  return new URL(url, page.document?.baseURI ?? page.location?.href)
}

const PREFIX = 'fastify-sse-manager:'

/** Returns the cursor that was stored for this key before a reload; empty without one. */
export function loadCursor (key: string): string {
  return withStorage(storage => storage.getItem(PREFIX + key)) ?? ''
}

/** Stores a cursor in `sessionStorage`, so that it outlives a reload. */
export function saveCursor (key: string, cursor: string): void {
  withStorage(storage => cursor === '' ? storage.removeItem(PREFIX + key) : storage.setItem(PREFIX + key, cursor))
}

/** Without storage, as in Node.js, or where the browser forbids it, nothing is kept. */
function withStorage<T> (call: (storage: NonNullable<Page['sessionStorage']>) => T): T | undefined {
  try {
    return page.sessionStorage === undefined ? undefined : call(page.sessionStorage)
  } catch {
    return undefined
  }
}
