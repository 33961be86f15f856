import { channel, subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { FastifyInstance, RouteOptions } from 'fastify'
import { ImportedTooLate, UnguardedRoute } from '../errors.js'
import { nameOf, prepareRoute, wantedOf, type DeclaredRoute, type RouteReader } from './route.js'

// Fastify does not show a plugin the routes that were declared before it was loaded, and `app.register()` without `await` loads it later.
// So this module records the routes of all Fastify instances, from its import until each instance is ready.

// `Symbol.for`: the package can be loaded twice, by `import` and by `require`. Increase the number when the shared structure changes.
const kRoutes = Symbol.for('fastify-sse-manager.routes.1')
const kSubscriber = Symbol.for('fastify-sse-manager.subscriber')
const DEFAULT_OPTION = 'sse'

type Watched = FastifyInstance & { [kRoutes]?: DeclaredRoutes }

/**
 * Records the routes of a Fastify instance, and shows each route to every manager. The order of declaration and registration does not
 * matter.
 */
export class DeclaredRoutes {
  #routes: DeclaredRoute[] = []
  readonly #readers: RouteReader[] = []

  /**
   * Returns the recorded routes of the instance that `fastify` is a scope of.
   * @throws SSE_ERR_IMPORTED_TOO_LATE when the instance has routes that were declared before this package was imported
   */
  static of (fastify: Watched, option: string): DeclaredRoutes {
    if (fastify[kRoutes] !== undefined) return fastify[kRoutes]
    if (fastify.printRoutes() !== '(empty tree)') throw new ImportedTooLate(option)
    return DeclaredRoutes.watch(fastify)
  }

  /** Records the routes that are declared from now on in this scope, in its parent scopes, and in scopes created later. */
  static watch (fastify: Watched): DeclaredRoutes {
    const routes = new DeclaredRoutes()
    let root = fastify
    for (let scope = fastify; 'addHook' in scope; scope = Object.getPrototypeOf(scope)) {
      root = scope
      scope.addHook('onRoute', function (options) { routes.#declare(options, this) })
    }
    Object.defineProperty(root, kRoutes, { value: routes })
    root.addHook('onReady', done => {
      routes.#assertGuarded()
      // Releases the route options, so that they do not stay in memory.
      routes.#routes = []
      done()
    })
    return routes
  }

  /** Registers a reader. The reader is called for each route declared so far, and then for each new route. */
  read (reader: RouteReader): void {
    this.#readers.push(reader)
    for (const route of this.#routes) reader.read(route)
  }

  get #options (): string[] {
    return [...new Set([DEFAULT_OPTION, ...this.#readers.map(({ option }) => option)])]
  }

  #declare (options: RouteOptions, scope: FastifyInstance): void {
    const isPrepared = this.#options.some(option => wantedOf(options, option) !== undefined)
    const route: DeclaredRoute = { options, scope, guards: [], isPrepared }
    if (isPrepared) prepareRoute(route)
    this.#routes.push(route)
    for (const reader of this.#readers) reader.read(route)
  }

  /**
   * Rejects routes whose option no plugin reads: the plugin is registered in another scope or not at all, and the route would accept
   * unauthenticated requests.
   * @throws SSE_ERR_UNGUARDED_ROUTE
   */
  #assertGuarded (): void {
    for (const reader of this.#readers) {
      const late = this.#routes.filter(route => isAsked(route, reader.option) && !reader.heeds(route))
      if (late.length > 0) throw new UnguardedRoute(late.map(({ options }) => nameOf(options)).join(', '), `an onRoute hook has set or changed the option "${reader.option}" after it was read; give it where the route is declared`)
    }
    for (const option of this.#options) {
      const open = this.#routes.filter(route => isAsked(route, option) && !isRead(route, option))
      if (open.length > 0) throw new UnguardedRoute(open.map(({ options }) => nameOf(options)).join(', '), `no plugin in their scope reads the option "${option}"; register fastify-sse-manager in that scope, or in one around it`)
    }
  }
}

/** Returns whether a route has the option with a value of this package. Any other value belongs to another plugin with the same option. */
function isAsked ({ options }: DeclaredRoute, option: string): boolean {
  const wanted = wantedOf(options, option)
  return wanted === true || (typeof wanted === 'object' && wanted !== null)
}

/** Returns whether this package reads the option, or another plugin that has an option or a decorator with the same name. */
function isRead ({ guards, scope }: DeclaredRoute, option: string): boolean {
  return guards.some(guard => guard.option === option) || scope.hasReplyDecorator(option) || scope.hasPlugin('@fastify/sse')
}

// Only the last loaded copy subscribes. An earlier copy can belong to a finished test environment, which the subscription would keep in
// memory.
const initialization = channel('fastify.initialization') as unknown as { [kSubscriber]?: (message: unknown) => void }
if (initialization[kSubscriber] !== undefined) unsubscribe('fastify.initialization', initialization[kSubscriber])
initialization[kSubscriber] = message => {
  const { fastify } = message as { fastify: Watched }
  if (fastify[kRoutes] === undefined) DeclaredRoutes.watch(fastify)
}
subscribe('fastify.initialization', initialization[kSubscriber])
