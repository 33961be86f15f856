import { channel, subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { FastifyInstance, RouteOptions } from 'fastify'
import { ImportedTooLate, UnguardedRoute } from '../errors.js'
import { nameOf, prepareRoute, wantedOf, type DeclaredRoute, type RouteReader } from './route.js'

// Fastify shows a plugin no routes that were declared before it was loaded, and `app.register()` without `await` loads it
// later. So the routes of all instances are remembered from the import of this package on, until they are ready.

// `Symbol.for`: the package may be loaded twice, for `import` and for `require`. The number goes up when what they share changes.
const kRoutes = Symbol.for('fastify-sse-manager.routes.1')
const kSubscriber = Symbol.for('fastify-sse-manager.subscriber')
const DEFAULT_OPTION = 'sse'

type Watched = FastifyInstance & { [kRoutes]?: DeclaredRoutes }

/** The routes of a Fastify instance, and the managers that read their options, in whatever order the two come. */
export class DeclaredRoutes {
  #routes: DeclaredRoute[] = []
  readonly #readers: RouteReader[] = []

  /**
   * Those of the instance that `fastify` is a scope of.
   * @throws SSE_ERR_IMPORTED_TOO_LATE when it has routes whose options were not seen.
   */
  static of (fastify: Watched, option: string): DeclaredRoutes {
    if (fastify[kRoutes] !== undefined) return fastify[kRoutes]
    if (fastify.printRoutes() !== '(empty tree)') throw new ImportedTooLate(option)
    return DeclaredRoutes.watch(fastify)
  }

  /** Remembers the routes that are declared from now on in this scope, in those around it, and in all that are made later. */
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
      // Their options are Fastify's again, which lets go of them.
      routes.#routes = []
      done()
    })
    return routes
  }

  /** Has a manager read the options of all routes, those of the past first. */
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

  /** The option of a route in whose scope nothing reads it is a registration in the wrong scope, or none: the route would be open. */
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

/** Another meaning of the option has other values. */
function isAsked ({ options }: DeclaredRoute, option: string): boolean {
  const wanted = wantedOf(options, option)
  return wanted === true || (typeof wanted === 'object' && wanted !== null)
}

/** By this package, or by another plugin that has an option, or a decorator, of the same name. */
function isRead ({ guards, scope }: DeclaredRoute, option: string): boolean {
  return guards.some(guard => guard.option === option) || scope.hasReplyDecorator(option) || scope.hasPlugin('@fastify/sse')
}

// One subscriber for all copies, the last: an earlier one may belong to a test environment that is gone, and would be kept alive.
const initialization = channel('fastify.initialization') as unknown as { [kSubscriber]?: (message: unknown) => void }
if (initialization[kSubscriber] !== undefined) unsubscribe('fastify.initialization', initialization[kSubscriber])
initialization[kSubscriber] = message => {
  const { fastify } = message as { fastify: Watched }
  if (fastify[kRoutes] === undefined) DeclaredRoutes.watch(fastify)
}
subscribe('fastify.initialization', initialization[kSubscriber])
