import t from 'tap'
import { createPublisher, defineEvents, SSEManager, type Broker, type SSEOptions } from '../lib/index.js'
import { resolveManagerOptions, resolveOptions, resolvePublisherOptions, resolveRouteOptions } from '../lib/options.js'
import { testClock, testLog } from '../lib/testing/index.js'
import { systemClock } from '../lib/util/clock.js'

// What options accept. What they reject: test/fastify/plugin.ts.

const at = (path: string, value: unknown) => path.split('.').reduceRight<unknown>((inner, key) => ({ [key]: inner }), value)
const of = (options: object, path: string) => path.split('.').reduce<unknown>((value, key) => (value as Record<string, unknown>)[key], options)

t.test('ranges and defaults of numbers', async t => {
  const MAX = Number.MAX_SAFE_INTEGER
  const DAYS = 2_147_483_647
  const rows: [path: string, minimum: number, value: number, maximum: number][] = [
    ['ticketTtlMs', 1_000, 30_000, 600_000],
    ['keepAliveIntervalMs', 10, 15_000, DAYS],
    ['retryMs', 100, 3_000, 3_600_000],
    ['maxConnectionAgeMs', 0, 0, DAYS],
    ['stallTimeoutMs', 0, 30_000, DAYS],
    ['history.maxEvents', 1, 10_000, 67_108_864],
    ['history.maxAgeMs', 1, 300_000, DAYS],
    ['history.maxBytes', 1_024, 67_108_864, 2_147_483_648],
    ['outboxBytes', 1_024, 1_048_576, 2_147_483_648],
    ['maxQueuedBytes', 1_024, 268_435_456, 2_147_483_648],
    ['maxConnections', 0, 0, MAX],
    ['maxConnectionsPerUser', 0, 0, MAX],
    ['maxConnectionsPerIp', 0, 0, MAX],
    ['maxSubscriptionsPerConnection', 1, 128, 100_000],
    ['maxEventBytes', 1, 1_048_576, 2_147_483_648],
    ['maxReplayEvents', 0, 0, MAX],
    ['maxReplayBytes', 0, 0, MAX],
    ['maxConcurrentReplays', 1, 32, 10_000],
    ['drainMs', 0, 5_000, 3_600_000],
    ['cluster.heartbeatIntervalMs', 100, 2_000, 60_000],
    ['cluster.answerTimeoutMs', 100, 2_000, 60_000],
    ['presenceEvents.lingerMs', 0, 15_000, DAYS],
    ['runs.max', 0, 1_000, MAX],
    ['runs.maxPerOwner', 0, 0, MAX],
    ['runs.maxBytes', 1, 268_435_456, 2_147_483_648],
    ['runs.leaseMs', 1_000, 10_000, 600_000],
    ['runs.drainMs', 0, 5_000, 3_600_000]
  ]
  const defaults = resolveOptions()
  const numbers = Object.entries(defaults).flatMap(([key, value]) => typeof value === 'number' ? [key] : Object.entries(value as object).filter(([, inner]) => typeof inner === 'number').map(([inner]) => `${key}.${inner}`))
  t.strictSame(rows.map(([path]) => path).sort(), numbers.sort(), 'each number is in the table')
  // Bounds of two options that depend on one another.
  const beside: Record<string, SSEOptions> = { 'history.maxBytes': { maxEventBytes: 1 }, maxEventBytes: { history: { maxBytes: 2_147_483_648 } } }
  for (const [path, minimum, value, maximum] of rows) {
    t.equal(of(defaults, path), value, path)
    for (const [given, isValid] of [[minimum - 1, false], [minimum, true], [maximum, true], [maximum + 1, false]] as const) {
      const options = { ...beside[path], ...at(path, given) as object }
      if (isValid) t.equal(of(resolveOptions(options), path), given, `${path}: ${given}`)
      else t.throws(() => resolveOptions(options), { code: 'SSE_ERR_INVALID_OPTION', message: new RegExp(`^Option "${path}" must be an integer from ${minimum} to ${maximum}, got `) }, `${path}: ${given}`)
    }
  }
  for (const intervalMs of [1, 10_000]) t.strictSame(resolveOptions({ flush: { intervalMs } }).flush, { intervalMs })
  for (const intervalMs of [0, 10_001]) t.throws(() => resolveOptions({ flush: { intervalMs } }))
})

t.test('other defaults, and values at the edge', async t => {
  t.match(resolveOptions(), {
    requireAuthentication: false,
    authRelation: 'or',
    allowedOrigins: [],
    keepAlive: true,
    flush: 'immediate',
    refusals: 'auto',
    clientSubscriptions: false,
    presenceEvents: { topics: [] },
    decorators: { instance: 'sse', reply: 'sse' },
    clock: systemClock
  })
  const yes = () => true
  const good: SSEOptions[] = [
    { requireAuthentication: true, authHandler: () => null },
    { requireAuthentication: true, authStrategies: [async () => {}] },
    { requireAuthentication: true, ticketSecret: 'x'.repeat(32) },
    { ticketSecret: ['x'.repeat(32)] },
    { keepAlive: 'event' },
    { refusals: 'stop' },
    { clientSubscriptions: 'patterns', path: '/', authorizeSubscription: yes },
    { clientSubscriptions: false },
    { snapshot: { load: () => null }, path: '/sse' },
    { maxEventBytes: 2_048, history: { maxBytes: 2_048 } },
    { cluster: { nodeName: 'x'.repeat(128) } },
    { presenceEvents: { topics: Array.from({ length: 100 }, (_, i) => `room:${i}:**`) } },
    { events: defineEvents() },
    { allowedOrigins: '*' },
    { allowedOrigins: ['null', 'https://app.example', 'http://localhost:3000', 'http://[::1]:3000', 'capacitor://localhost', 'file://', 'app+x.y-z://host:1'] }
  ]
  for (const options of good) t.match(resolveOptions(options), { ...options, ...(options.allowedOrigins !== undefined && { allowedOrigins: options.allowedOrigins }) })
  for (const [options, path, fault] of [
    [{ snapshot: { load: () => null } }, 'snapshot', /needs path/],
    [{ maxEventBytes: 2_049, history: { maxBytes: 2_048 } }, 'maxEventBytes', /must not exceed history.maxBytes/],
    [{ presenceEvents: { topics: Array.from({ length: 101 }, (_, i) => `room:${i}`) } }, 'presenceEvents.topics', /at most 100 items, has 101/],
    [{ presenceEvents: { topics: ['room:**:a'] } }, 'presenceEvents.topics', /has an invalid topic or pattern: Subscription "room:\*\*:a" may have/],
    [{ allowedOrigins: ['https://a', 'https://app.example/'] }, 'allowedOrigins', /has "https:\/\/app.example\/", which is no origin/],
    ...['Capacitor://localhost', 'capacitor://local host', 'capacitor://localhost/', 'capacitor://a?b', 'capacitor://a#b', 'capacitor://a@b', 'capacitor://a\\b', 'capacitor://a,b', 'mailto:a', 'localhost:3000', 'http://app.example:80', 'NULL'].map(origin => [{ allowedOrigins: [origin] }, 'allowedOrigins', /which is no origin/] as const)
  ] as const) t.throws(() => resolveOptions(options), { code: 'SSE_ERR_INVALID_OPTION', message: new RegExp(`^Option "${path}" .*${fault.source}`) }, JSON.stringify(options))
})

t.test('a manager takes no option that only the plugin reads, and what was checked is not checked again', async t => {
  const checked = resolveOptions({ path: '/sse', snapshot: { load: () => null } })
  t.equal(resolveManagerOptions(checked), checked)
  for (const [name, value] of Object.entries({ path: '/sse', snapshot: { load: () => null }, clientSubscriptions: true, decorators: {}, authStrategies: [async () => {}], authRelation: 'and' })) {
    t.throws(() => resolveManagerOptions({ [name]: value }), { code: 'SSE_ERR_INVALID_OPTION', message: `Option "${name}" has no effect in an SSEManager: give it to the plugin, app.register(ssePlugin, { ${name}: … })` })
  }
  t.throws(() => new SSEManager(null as never), { code: 'SSE_ERR_INVALID_OPTION', message: 'Option "/" must be an object, got null' })
  const { options, clock } = testClock()
  t.equal(resolveManagerOptions(options).clock, clock)
  t.equal(resolveManagerOptions().clock, systemClock)
})

t.test('a publisher has the bounds of the nodes', async t => {
  const broker = testLog().broker()
  const resolved = resolvePublisherOptions({ broker, maxEventBytes: 1_024, history: { maxBytes: 1_024 } })
  const { history, runs } = resolveOptions()
  t.match(resolved, { maxEventBytes: 1_024, history: { ...history, maxBytes: 1_024 }, runs, clock: systemClock })
  t.equal(resolved.broker, broker)
  const missing = ['open', 'publish', 'read', 'claim', 'close'] as const
  for (const method of missing) t.throws(() => createPublisher({ broker: Object.assign(Object.create(broker), { [method]: undefined }) as Broker }), { message: `Option "broker" must be a Broker, such as memoryBroker(): it has no method ${method}` })
})

t.test('the option of a route', async t => {
  const of = (sse: unknown) => resolveRouteOptions({ url: '/x', sse } as { url: string }, 'sse')
  t.strictSame([true, false, {}, { requireAuthentication: false, refusals: 'stop' }].map(of), [{}, null, {}, { requireAuthentication: false, refusals: 'stop' }])
  t.equal(resolveRouteOptions({ url: '/x' }, 'sse'), null)
  t.equal(resolveRouteOptions(Object.assign(Object.create({ sse: true }), { url: '/x' }), 'sse'), null, 'not what it inherits')
})
