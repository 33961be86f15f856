import type { onRequestHookHandler, onSendHookHandler, RouteOptions } from 'fastify'
import type { RouteOptions as ResolvedRouteOptions } from '../options.js'

/** Values of the route option `sse`, instead of `true`. */
export interface SSERouteOptions {
  /**
   * Whether unauthenticated requests are rejected with 401 (SSE_ERR_UNAUTHENTICATED). Default: the plugin option `requireAuthentication`.
   */
  requireAuthentication?: boolean
  /** How stream requests are refused: `'auto'`, `'status'` or `'stop'`. Default: the plugin option `refusals`. */
  refusals?: ResolvedRouteOptions['refusals']
}

// Other plugins add, wrap and replace options of a route in their onRoute hooks, before and after this package. Fastify reads the hooks
// once all plugins are loaded, and the other options when the route is declared.

/** Makes a route option return `over(value)`, also for a value that another plugin sets later. */
export function overlay<K extends 'errorHandler' | 'logSerializers'> (route: RouteOptions, name: K, over: (value: RouteOptions[K]) => RouteOptions[K]): void {
  let shown = over(route[name])
  Object.defineProperty(route, name, {
    enumerable: true,
    get: () => shown,
    // A value that was read and is set again, as by a copy of the options, is already a result of `over`.
    set: (value: RouteOptions[K]) => { if (value !== shown) shown = over(value) }
  })
}

interface Hooks { onRequest: onRequestHookHandler, onSend: onSendHookHandler }

/**
 * Keeps one hook the last of a route, whatever other plugins add, wrap or replace. If the route has other hooks, `first` is kept before
 * all of them.
 * @param lastOf creates the last hook. The hook must do nothing when `isLast()` returns false: a newer hook has replaced it. The old hook
 * can be inside a wrapper of another plugin, with other hooks after it.
 */
export function pinHooks<N extends keyof Hooks> (route: RouteOptions, name: N, lastOf: (isLast: () => boolean) => Hooks[N], first?: Hooks[N]): void {
  let hooks: Hooks[N][] = []
  let last: Hooks[N] | null = null
  const give = (given: RouteOptions[N]): void => { hooks = [given ?? []].flat() as Hooks[N][] }
  give(route[name])
  Object.defineProperty(route, name, {
    // Not configurable: a plugin that deletes the option gets an error, and the guard remains.
    enumerable: true,
    get: () => {
      // Returns the same array each time, because plugins add hooks to it.
      if (last === null || hooks.at(-1) !== last) {
        const at = last === null ? -1 : hooks.indexOf(last)
        if (at >= 0) hooks.splice(at, 1)
        const next: Hooks[N] = lastOf(() => next === last)
        hooks.push(last = next)
      }
      if (first !== undefined && hooks.length > 1 && hooks[0] !== first) hooks.unshift(first)
      return hooks
    },
    set: give
  })
}
