import type { TSchema } from '@sinclair/typebox'
import Fastify, { type FastifyInstance, type FastifyReply } from 'fastify'
import fp from 'fastify-plugin'
import t, { type Test } from 'tap'
import ssePlugin, { SSEError, SSEManager, type SSEOptions } from '../../lib/index.js'
import { OptionsSchema } from '../../lib/options.js'
import { listen, openURL } from '../helpers/app.js'
import { bearer, refusal, start } from '../helpers/server.js'

// Who may open a stream, who finds it out and when; where the plugin can be registered, and what stops the boot.

const asUser: SSEOptions['authHandler'] = ({ token }) => token

t.test('encapsulation', async t => {
  await t.test('registered in a child: the parent and its other children have nothing', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(async child => {
      await child.register(ssePlugin)
      t.ok(child.sse instanceof SSEManager)
      child.get('/child', { sse: true }, async (_request, reply) => { await reply.sse() })
    })
    await app.register(async sibling => {
      t.equal(sibling.sse, undefined)
      sibling.get('/sibling', async (_request, reply) => ({ sse: typeof (reply as { sse?: unknown }).sse }))
      t.doesNotThrow(() => sibling.get('/theirs', { sse: 'another meaning' } as never, async () => 'theirs'), 'the route option is ours only where we are')
    })
    const url = await listen(app)
    t.equal(app.sse, undefined)
    const stream = await openURL(t, `${url}/child`)
    t.ok(stream.isStream)
    t.strictSame((await openURL(t, `${url}/sibling`, { headers: { connection: 'close' } })).body, { sse: 'undefined' })
  })

  await t.test('registered in a parent: its children have it, and share it', async t => {
    const server = await start(t, async app => {
      await app.register(ssePlugin, { requireAuthentication: true, authHandler: asUser })
      await app.register(async child => {
        t.equal(child.sse, app.sse)
        await child.register(async grandchild => {
          grandchild.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
        })
      })
    })
    refusal(t, await server.open(), 401, 'SSE_ERR_UNAUTHENTICATED')
    t.ok((await server.open('/sse', bearer('ada'))).isStream)
    t.equal(server.app.sse.connectionCount, 1)
  })

  await t.test('siblings have managers of their own', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    const managers: SSEManager[] = []
    for (const prefix of ['/a', '/b']) {
      await app.register(async scope => {
        await scope.register(ssePlugin)
        managers.push(scope.sse)
        scope.get('/sse', { sse: true }, async (_request, reply) => { await reply.sse() })
      }, { prefix })
    }
    const url = await listen(app)
    await openURL(t, `${url}/b/sse`)
    t.strictSame(managers.map(({ connectionCount }) => connectionCount), [0, 1])
  })

  const fails = async (t: Test, register: (app: FastifyInstance) => unknown, expected: { code: string | RegExp, message?: RegExp }) => {
    const app = Fastify()
    t.teardown(() => app.close())
    await t.rejects(async () => {
      await register(app)
      await app.ready()
    }, expected)
  }
  const theirs = (name: string, kind: 'instance' | 'reply') => fp(async (app: FastifyInstance) => {
    if (kind === 'instance') app.decorate(name, { theirs: true })
    else app.decorateReply(name, function () {})
  })

  await t.test('registering twice', async t => {
    await fails(t, async app => {
      await app.register(ssePlugin)
      await app.register(ssePlugin)
    }, { code: 'SSE_ERR_ALREADY_REGISTERED', message: /"fastify\.sse"/ })
    await fails(t, async app => {
      await app.register(ssePlugin)
      await app.register(async child => { await child.register(ssePlugin) })
    }, { code: 'SSE_ERR_ALREADY_REGISTERED' })
    await fails(t, async app => {
      await app.register(ssePlugin, { decorators: { instance: 'a', reply: 'b' } })
      await app.register(ssePlugin, { decorators: { instance: 'a', reply: 'c' } })
    }, { code: 'SSE_ERR_ALREADY_REGISTERED', message: /"fastify\.a"/ })
  })

  await t.test('beside another plugin', async t => {
    for (const [kind, name] of [['instance', 'fastify.sse'], ['reply', 'reply.sse']] as const) {
      await fails(t, async app => {
        await app.register(theirs('sse', kind))
        await app.register(ssePlugin)
      }, { code: 'SSE_ERR_DECORATOR_TAKEN', message: new RegExp(name.replace('.', '\\.')) })
      const app = Fastify()
      t.teardown(() => app.close())
      await app.register(theirs('sse', kind))
      await app.register(ssePlugin, { decorators: { [kind]: 'events' } })
      await app.ready()
      t.pass(`${name} stays theirs under another name of ours`)
    }
    await fails(t, app => app.register(ssePlugin, { decorators: { instance: 'log' } }), { code: 'SSE_ERR_DECORATOR_TAKEN' })
    await fails(t, app => app.register(ssePlugin, { decorators: { reply: 'send' } }), { code: /SSE_ERR_DECORATOR_TAKEN|FST_ERR_DEC_ALREADY_PRESENT/ })
  })

  await t.test('two managers side by side, each with its own say', async t => {
    type Named = FastifyReply & Record<'open' | 'strict', FastifyReply['sse']>
    const server = await start(t, async app => {
      await app.register(ssePlugin, { decorators: { instance: 'openly', reply: 'open' }, authHandler: ({ query }) => query['user'] as string ?? 'guest' })
      await app.register(ssePlugin, { decorators: { instance: 'strictly', reply: 'strict' }, requireAuthentication: true, authHandler: asUser })
      app.get('/open', { open: true } as object, async (_request, reply) => { await (reply as Named).open() })
      app.get('/strict', { strict: true } as object, async (_request, reply) => { await (reply as Named).strict() })
      app.get('/crossed', { open: true } as object, async (_request, reply) => { await (reply as Named).strict() })
      app.get('/both', { open: true, strict: true } as object, async (_request, reply) => { await (reply as Named).strict() })
      app.get('/swapped', { open: true, strict: true } as object, async (request, reply) => {
        await (reply as Named).open()
        t.equal(request.sseUser?.userId, (request.query as { user: string }).user, 'the user of the stream')
      })
      t.throws(() => app.get('/x', { strict: 7 } as object, async () => {}), { code: 'SSE_ERR_INVALID_OPTION', message: 'Option "strict" of route /x must be true, false or an object' })
    })
    const { openly, strictly } = server.app as unknown as Record<'openly' | 'strictly', SSEManager>
    t.not(openly, strictly)
    t.equal(server.app.sse, undefined)
    for (const path of ['/strict', '/crossed', '/both', '/swapped']) refusal(t, await server.open(`${path}?user=admin`), 401, 'SSE_ERR_UNAUTHENTICATED')
    t.ok((await server.open('/open')).isStream)
    for (const path of ['/strict', '/crossed', '/both']) t.ok((await server.open(`${path}?user=admin`, bearer('ada'))).isStream, path)
    t.ok((await server.open('/swapped?user=grace', bearer('ada'))).isStream)
    t.strictSame([...openly.connections()].map(({ userId }) => userId), ['guest', 'grace'])
    t.strictSame([...strictly.connections()].map(({ userId }) => userId), ['ada', 'ada', 'ada'])
    const [first] = strictly.getConnectionsByUser('ada')
    t.match(await openly.broadcastEvent({ event: 'x', data: 1 }), { delivered: 2 })
    t.match(await strictly.broadcastEvent({ event: 'x', data: 1 }, { clientIds: [first!.clientId] }), { delivered: 1 })
  })
})

t.test('options that make no sense stop the boot, and are named', async t => {
  const fn = () => {}
  // One or more wrong values for each option; a path with a dot is inside an object.
  const wrong: Record<string, unknown[]> = {
    requireAuthentication: ['yes', 1, null],
    authHandler: ['ada', {}, null],
    extractAuthData: [{}],
    authStrategies: [[], [7], fn, [[7]], [[[fn]]]],
    authRelation: ['xor'],
    authorizeSubscription: [true],
    authorizeTopic: [true],
    ticketSecret: ['short', [], ['short'], 7, 'x'.repeat(31)],
    ticketTtlMs: [0, 999, 600_001],
    allowedOrigins: ['https://app.example', [7], [''], ['app.example'], ['https://app.example/'], ['https://app.example:443'], ['https://App.example'], ['*'], null],
    keepAlive: [0],
    keepAliveIntervalMs: [0, -1, 1.5, '15s', Infinity, NaN],
    retryMs: [99, 3_600_001],
    maxConnectionAgeMs: [-1, 2 ** 31],
    stallTimeoutMs: [-1, '1'],
    events: [{}, null, { events: {}, resources: {} }],
    history: [null, 7, []],
    'history.maxEvents': [0, -1, 2 ** 27],
    'history.maxAgeMs': [0, '5m'],
    'history.maxBytes': [0, 1023],
    outboxBytes: [0, 1023, -1],
    flush: ['later', {}, { intervalMs: 0 }, { intervalMs: 5, more: 1 }, 5],
    maxConnections: [-1, 1.5],
    maxConnectionsPerUser: [-1],
    maxConnectionsPerIp: ['10'],
    maxSubscriptionsPerConnection: [0],
    maxEventBytes: [0, -1],
    maxQueuedBytes: [0, 1023],
    maxReplayEvents: [-1],
    maxReplayBytes: [-1],
    maxConcurrentReplays: [0],
    refusals: ['always', true],
    clientSubscriptions: ['wildcards', 1],
    drainMs: [-1, 3_600_001],
    cluster: [null, 'a'],
    'cluster.nodeName': ['', 7, 'x'.repeat(129)],
    'cluster.heartbeatIntervalMs': [0, 99, 60_001],
    'cluster.answerTimeoutMs': [0, '2s'],
    presenceEvents: [null, true],
    'presenceEvents.topics': ['room:*', [7], ['room:'], ['room:**:1']],
    'presenceEvents.lingerMs': [-1, '5s'],
    runs: [null, 7],
    'runs.max': [-1, 1.5],
    'runs.maxPerOwner': [-1, '1'],
    'runs.maxBytes': [0, -1],
    'runs.leaseMs': [0, 999, 600_001],
    'runs.drainMs': [-1, 3_600_001],
    broker: [{}, null, 'redis', { open: fn, publish: fn, read: fn }],
    path: ['sse', '', 7],
    snapshot: [null, 7, [], {}, { load: 1 }],
    decorators: [null, 'sse'],
    'decorators.instance': ['', 7],
    'decorators.reply': ['', null]
  }
  const boots = async (given: unknown) => {
    const app = Fastify()
    try {
      await app.register(ssePlugin, given as SSEOptions)
      await app.ready()
      return null
    } catch (error) {
      return error as SSEError
    } finally {
      await app.close()
    }
  }
  const at = (path: string, value: unknown) => path.split('.').reduceRight<unknown>((inner, key) => ({ [key]: inner }), value)
  const refused = async (given: unknown, path: string, title: string) => {
    const error = await boots(given)
    t.ok(error instanceof SSEError && error.code === 'SSE_ERR_INVALID_OPTION', `${title}: ${error?.code}`)
    const named = /^Option "([^"]*)" (.+)$/.exec(error?.message ?? '')
    t.ok(named !== null && (named[1] === path || named[1]!.startsWith(`${path}.`)), `${title}: ${error?.message}`)
  }

  const paths = Object.entries(OptionsSchema.properties as Record<string, TSchema>).flatMap(([key, { properties }]) => [key, ...Object.keys(properties ?? {}).map(inner => `${key}.${inner}`)])
  t.strictSame(Object.keys(wrong).sort(), paths.sort(), 'each option is in the table')
  // Options that decide who may connect or who receives what: absent is a decision, undefined is a mistake.
  const protecting = ['requireAuthentication', 'authHandler', 'authStrategies', 'authRelation', 'authorizeSubscription', 'authorizeTopic', 'decorators', 'decorators.reply']
  for (const [path, values] of Object.entries(wrong)) {
    for (const value of values) await refused(at(path, value), path, `${path}: ${JSON.stringify(value)}`)
    if (protecting.includes(path)) t.match(await boots(at(path, undefined)), { code: 'SSE_ERR_INVALID_OPTION', message: new RegExp(`^Option "${path}" is undefined, which would remove a protection`) }, path)
    else t.equal(await boots(at(path, undefined)), null, `${path}: undefined is not given`)
  }
  t.match(await boots({ requireAuthentification: undefined }), { message: 'Option "requireAuthentification" is not an option; did you mean "requireAuthentication"?' }, 'nor is an unknown name overlooked because of its value')
  for (const [path, value, meant] of [['keepalive', false, 'keepAlive'], ['keepAliveIntervalMS', 15_000, 'keepAliveIntervalMs'], ['maxConections', 1, 'maxConnections'], ['histroy', {}, 'history'], ['history.maxEvent', 1, 'maxEvents'], ['decorators.rpely', 'sse', 'reply'], ['decorators.request', 'sse', ''], ['Path', '/sse', 'path'], ['heartbeat', 1, ''], ['constructor', 1, '']] as const) {
    const error = await boots(at(path, value))
    t.match(error, { code: 'SSE_ERR_INVALID_OPTION', message: new RegExp(`^Option "${path}" is not an option(?:: it has [\\w, ]+)?${meant === '' ? '' : `; did you mean "${meant}"\\?`}$`) }, path)
  }
  t.match(await boots(Promise.resolve({ requireAuthentication: true })), { code: 'SSE_ERR_INVALID_OPTION', message: /a promise/ })
  t.match(await boots({ flush: 'later' }), { message: /^Option "flush" must be "immediate" or { intervalMs }, got "later": / })
  for (const [given, fault] of [
    [{ flush: { interval: 5 } }, '"flush.interval" is not an option: it has intervalMs; did you mean "intervalMs"?'],
    [{ flush: { intervalMs: 0 } }, '"flush.intervalMs" must be an integer from 1 to 10000, got 0'],
    [{ flush: {} }, '"flush.intervalMs" is missing: it must be an integer from 1 to 10000'],
    [{ authStrategies: [1] }, '"authStrategies.0" must be a function or an array of functions, got 1'],
    [{ authStrategies: 'jwt' }, '"authStrategies" must be an array of functions or arrays of functions, got "jwt": '],
    [{ authStrategies: [] }, '"authStrategies" must have at least 1 item, has 0: '],
    [{ ticketSecret: 'secret' }, '"ticketSecret" must have at least 32 characters, has 6'],
    [{ ticketSecret: ['secret'] }, '"ticketSecret.0" must have at least 32 characters, has 6'],
    [{ ticketSecret: 12345678 }, '"ticketSecret" must be a string or an array of strings, got a number: '],
    [{ ticketSecret: null }, '"ticketSecret" must be a string or an array of strings, got null: '],
    [{ keepAliveIntervalMs: '30s' }, '"keepAliveIntervalMs" must be an integer from 10 to 2147483647, got "30s": '],
    [{ path: 'x'.repeat(1_000_000) }, `"path" must begin with "/", got "${'x'.repeat(80)}…": `],
    [{ history: 100 }, '"history" must be an object { maxEvents, maxAgeMs, maxBytes }, got 100: '],
    [{ requireAuth: true }, '"requireAuth" is not an option; did you mean "requireAuthentication"?'],
    [{ allowedOrigins: ['https://*.app.example'] }, '"allowedOrigins" has "https://*.app.example": wildcards are not supported']
  ] as const) t.ok((await boots(given))?.message.startsWith(`Option ${fault}`), fault)
  t.match(await boots({ keepAlive: 0 }), { message: /^Option "keepAlive" / })
  t.match(await boots({ authRelation: 'AND' }), { message: /must be "or" or "and"/ })
  t.match(await boots({ broker: { open: fn, publish: fn, read: fn } }), { message: /no method claim/ })
  const yes = () => true
  for (const [given, path] of [
    [{ requireAuthentication: true }, 'requireAuthentication'],
    [{ requireAuthentication: true, authorizeSubscription: yes }, 'requireAuthentication'],
    [{ clientSubscriptions: true, path: '/sse' }, 'clientSubscriptions'],
    [{ clientSubscriptions: 'patterns', path: '/sse' }, 'clientSubscriptions'],
    [{ clientSubscriptions: true, authorizeSubscription: yes }, 'clientSubscriptions'],
    [{ maxEventBytes: 4096, history: { maxBytes: 2048 } }, 'maxEventBytes'],
    [{ history: { maxBytes: 2048 } }, 'maxEventBytes']
  ] as const) await refused(given, path, JSON.stringify(given))
  t.throws(() => new SSEManager('options' as never), { code: 'SSE_ERR_INVALID_OPTION' })
  t.throws(() => new SSEManager([] as never), { code: 'SSE_ERR_INVALID_OPTION' })
  t.throws(() => new SSEManager({ keepAliveMs: 1 } as never), { code: 'SSE_ERR_INVALID_OPTION' })
  // Read by the plugin only: on a plain server they would protect nothing, and open nothing.
  const onlyPlugin: SSEOptions = { path: '/sse', clientSubscriptions: true, decorators: { instance: 'a' }, authStrategies: [async () => {}], authRelation: 'and' }
  for (const [name, value] of Object.entries(onlyPlugin)) {
    t.throws(() => new SSEManager({ authorizeSubscription: yes, [name]: value }), { code: 'SSE_ERR_INVALID_OPTION', message: new RegExp(`^Option "${name}" has no effect in an SSEManager`) as never }, name)
  }
  t.ok(new SSEManager({ path: undefined } as never), 'undefined is not given')
  t.throws(() => new SSEManager({ authHandler: undefined } as never), { code: 'SSE_ERR_INVALID_OPTION', message: /undefined/ })
})
