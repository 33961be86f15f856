/** What sharing needs of a browser. The types of the DOM are not loaded: they would become part of the types of the server. */
export interface Locks {
  request (name: string, options: { signal?: AbortSignal, steal?: boolean }, held: () => Promise<void> | void): Promise<void>
}

interface Page {
  readonly navigator?: { readonly locks?: Locks }
  readonly BroadcastChannel?: unknown
  readonly location?: unknown
  readonly document?: {
    addEventListener (type: string, listener: () => void, options: { signal: AbortSignal }): void
  }
}

/** The Web Locks of this page; null where tabs cannot share, as in a page without HTTPS, and in Node.js, which has locks too. */
export function webLocks (): Locks | null {
  const { navigator, BroadcastChannel, location } = globalThis as unknown as Page
  return BroadcastChannel === undefined || location === undefined ? null : navigator?.locks ?? null
}

/** Calls the listeners when the browser freezes this page and when it resumes it, until the signal is aborted. */
export function watchFreeze (signal: AbortSignal, freeze: () => void, resume: () => void): void {
  const { document } = globalThis as unknown as Page
  document?.addEventListener('freeze', freeze, { signal })
  document?.addEventListener('resume', resume, { signal })
}
