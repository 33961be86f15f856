import type { onRequestHookHandler, onSendHookHandler, RouteOptions } from 'fastify'
import type { RouteOptions as ResolvedRouteOptions } from '../options.js'

export interface SSERouteOptions {
  /** Overrides the plugin's option for this route. */
  requireAuthentication?: boolean
  /** Overrides the plugin's option for this route: `'auto'`, `'status'` or `'stop'`. */
  refusals?: ResolvedRouteOptions['refusals']
}

// Plugins add to, wrap and replace the options of a route in their onRoute hooks, before and after this package does. Fastify
// reads hooks once all plugins are loaded, the rest when the route is declared.

/** Has a route show `over(value)` as its option, also of a value that another plugin sets later. */
export function overlay<K extends 'errorHandler' | 'logSerializers'> (route: RouteOptions, name: K, over: (value: RouteOptions[K]) => RouteOptions[K]): void {
  let shown = over(route[name])
  Object.defineProperty(route, name, {
    enumerable: true,
    get: () => shown,
    // What was read and is set again, as by a copy of the options, is covered already.
    set: (value: RouteOptions[K]) => { if (value !== shown) shown = over(value) }
  })
}

interface Hooks { onRequest: onRequestHookHandler, onSend: onSendHookHandler }

/**
 * Keeps a hook the last of its route, and another one the first if there is any between them, whatever other plugins add, wrap or replace.
 * @param lastOf makes the last hook. The hook has to do nothing when `isLast` says that a newer one has replaced it: the old one may be in a wrapping, with others after it.
 */
export function pinHooks<N extends keyof Hooks> (route: RouteOptions, name: N, lastOf: (isLast: () => boolean) => Hooks[N], first?: Hooks[N]): void {
  let hooks: Hooks[N][] = []
  let last: Hooks[N] | null = null
  const give = (given: RouteOptions[N]): void => { hooks = [given ?? []].flat() as Hooks[N][] }
  give(route[name])
  Object.defineProperty(route, name, {
    // Not configurable: a plugin that deletes the option fails, rather than remove a guard.
    enumerable: true,
    get: () => {
      // The same list each time: others add to it.
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
