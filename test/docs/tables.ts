import { existsSync } from 'node:fs'
import { readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { TSchema } from '@sinclair/typebox'
import t from 'tap'
import { CONNECT_OPTIONS, CREATE_OPTIONS, SOURCE_OPTIONS } from '../../lib/access/connect-options.js'
import { CLIENT_OPTIONS } from '../../lib/client/client-options.js'
import { CLIENT_ERROR_CODES } from '../../lib/client/errors.js'
import { CLOSE_REASONS } from '../../lib/connections/close-reason.js'
import * as errors from '../../lib/errors.js'
import type { ControlEvent } from '../../lib/events/control.js'
import { SSEError } from '../../lib/index.js'
import type { GapReason } from '../../lib/log/broker.js'
import { RedisStreamsOptionsSchema } from '../../lib/log/redis/options.js'
import { OptionsSchema, PublisherOptionsSchema } from '../../lib/options.js'
import { payloads, serve } from '../helpers/app.js'
import { documentationIn, membersOf, type Member } from '../helpers/compiler.js'
import { membersTable, optionsInterface, optionsTable } from '../helpers/options-table.js'
import { PAGES, pageAt, ROOT, tableOf } from '../helpers/pages.js'
import { ROOMS } from '../helpers/rooms.js'

// The tables of the pages are compared with the code.

const STREAMS = { '`reply.sse(options)`': CONNECT_OPTIONS, '`reply.sse(source)`': SOURCE_OPTIONS, '`createConnection`': CREATE_OPTIONS }

const PAGE_TYPES: Record<string, string> = { css: 'text/css; charset=utf-8', html: 'text/html; charset=utf-8', js: 'text/javascript; charset=utf-8', svg: 'image/svg+xml' }

/** The module with the files of the admin page, so that a bundled application needs no files beside it. */
async function adminFiles (): Promise<string> {
  const directory = join(ROOT, 'lib/admin/page')
  const entries = await Promise.all((await readdir(directory)).sort().map(async name => `  '${name}': { type: '${PAGE_TYPES[name.split('.').at(-1)!]}', text: ${JSON.stringify(await readFile(join(directory, name), 'utf8'))} }`))
  return [
    '/* eslint-disable @stylistic/quotes, no-template-curly-in-string */',
    '// Made from the files of lib/admin/page by test/docs.test.ts; UPDATE_DOCS=1 writes it.',
    '/** The files of the page by name. */',
    `export const FILES: Readonly<Record<string, { readonly type: string, readonly text: string }>> = {\n${entries.join(',\n')}\n}\n`
  ].join('\n')
}

/** The table of all options of new streams, and what takes each. */
function streamOptionsTable (): string {
  const members = new Map<string, Member>(['CreateConnection', 'SourceOptions', 'ConnectOptions'].flatMap(type => membersOf(type).map(member => [member.name, member] as const)))
  const takers = (name: string) => Object.entries(STREAMS).filter(([, names]) => names.includes(name)).map(([stream]) => stream)
  const names = new Set(Object.values(STREAMS).flat())
  return membersTable(Array.from(names, name => members.get(name)!), name => takers(name).length === 3 ? 'all' : takers(name).join(', '))
}

t.test('tables and lists', async t => {
  t.test('options and rooms, made from their schemas and list', async t => {
    const rooms = ['| Room | What it is for |', '|---|---|', ...ROOMS.map(([room, job]) => `| \`${room}\` | ${job} |`)].join('\n')
    const tables = {
      options: optionsTable(OptionsSchema),
      'redis-options': optionsTable(RedisStreamsOptionsSchema),
      'publisher-options': optionsTable(PublisherOptionsSchema),
      'stream-options': streamOptionsTable(),
      'snapshot-options': membersTable(membersOf('SharedSnapshot')),
      'run-options': membersTable(membersOf('RunOptions')),
      'admin-options': membersTable(membersOf('AdminOptions', 'fastify-sse-manager/admin')),
      'connection-query': membersTable(membersOf('ConnectionQuery')),
      rooms
    }
    const files = new Map<string, { is: string, wanted: string }>()
    for (const { path, text } of PAGES) {
      const wanted = text.replace(/(<!-- ([\w-]+): made from [^\n]*-->\n).*?(<!-- \/\2 -->)/gs, (_, before: string, marker: keyof typeof tables, after: string) => `${before}${tables[marker]}\n${after}`)
      if (text.includes('<!-- /')) files.set(path, { is: text, wanted })
    }
    t.same(Array.from(files.values(), ({ is }) => Array.from(is.matchAll(/<!-- \/([\w-]+) -->/g), ([, marker]) => marker)).flat().sort(), Object.keys(tables).sort(), 'each table stands once')
    files.set('lib/admin/files.ts', { is: await readFile(join(ROOT, 'lib/admin/files.ts'), 'utf8'), wanted: await adminFiles() })
    files.set('types/options.ts', {
      is: await readFile(join(ROOT, 'types/options.ts'), 'utf8'),
      wanted: [
        "import type { FastifyRequest } from 'fastify'\nimport type { AuthHandler } from '../lib/access/authentication.js'\nimport type { ResolvedRedisOptions } from '../lib/log/redis/options.js'\nimport type { ResolvedOptions, ResolvedPublisherOptions } from '../lib/options.js'",
        '// Made from the schemas of lib/options.ts and lib/log/redis/options.ts by test/docs.test.ts; UPDATE_DOCS=1 writes it.',
        optionsInterface('SSEOptions', 'Options of the plugin and of `SSEManager`, all optional.', OptionsSchema, 'ResolvedOptions'),
        optionsInterface('PublisherOptions', 'Options of `createPublisher`, all but `broker` optional.', PublisherOptionsSchema, 'ResolvedPublisherOptions'),
        optionsInterface('RedisStreamsOptions', 'Options of `redisStreamsBroker`, all but `client` optional.', RedisStreamsOptionsSchema, 'ResolvedRedisOptions')
      ].join('\n\n') + '\n'
    })
    for (const [path, { is, wanted }] of files) {
      if (process.env.UPDATE_DOCS === '1') await writeFile(join(ROOT, path), wanted)
      else t.equal(is, wanted, `UPDATE_DOCS=1 brings ${path} up to date`)
    }
  })

  t.test('options that must not be undefined', async t => {
    const marked = (properties: Record<string, TSchema>, prefix = ''): string[] => Object.entries(properties).flatMap(([name, schema]) => [...(schema['protects'] === true ? [prefix + name] : []), ...marked(schema.properties ?? {}, `${prefix}${name}.`)])
    const [, listed] = /The ones that protect must not be `undefined`.*?:\n(.*?)\./.exec(pageAt('docs/reference/options.md').text.replace('decorators.reply', 'decorators/reply'))!
    t.same(Array.from(listed!.matchAll(/`([^`]+)`/g), ([, name]) => name!.replace('/', '.')), marked(OptionsSchema.properties))
  })

  t.test('options, as an editor shows them', async t => {
    const { history, ...others } = OptionsSchema.properties
    const lines = [...Object.keys(others).map(name => `${name}: null!`), `history: { ${Object.keys(history.properties).map(name => `${name}: 1`).join(', ')} }`]
    const shown = documentationIn(`
      import ssePlugin from 'fastify-sse-manager'
      import type { FastifyInstance, FastifyReply } from 'fastify'
      export async function use (app: FastifyInstance, reply: FastifyReply) {
        await app.register(ssePlugin, { ${lines.join(', ')} })
        await app.sse.broadcastEvent({ data: 1 }, { ephemeral: true, userIds: [] })
        await reply.sse({ subscriptions: [], clientInfo: {}, lastEventId: null })
      }`, [...Object.keys(OptionsSchema.properties), ...Object.keys(history.properties), 'ephemeral', 'userIds', 'subscriptions', 'clientInfo', 'lastEventId'])
    t.same([...shown].filter(([, text]) => text === ''), [])
    t.equal(shown.get('keepAliveIntervalMs'), 'Silence after which a keep-alive is sent, in milliseconds. Integer from 10. Default `15_000`.')
    t.equal(shown.get('maxAgeMs'), 'Age to which events are kept for replay, in milliseconds. Integer from 1. Default `300_000`.')
  })

  t.test('errors, with their status', async t => {
    const defined = Object.values(errors)
      .filter(value => value !== SSEError && value !== errors.reviveError)
      .map(value => new (value as new () => SSEError)())
      .map(({ code, statusCode }) => `${code} ${statusCode}`)
    t.ok(defined.length > 30)
    t.same(tableOf('Code').map(([code, status]) => `${code} ${status}`).sort(), defined.sort())
  })

  t.test('errors and options of the client', async t => {
    t.same(tableOf('Error of the client').map(([code]) => code).sort(), [...CLIENT_ERROR_CODES].sort())
    t.same(tableOf('Option of `createClient()`').map(([name]) => name).sort(), [...CLIENT_OPTIONS].sort())
  })

  t.test('close reasons, and after which of them clients are told to come back', async t => {
    const rows = tableOf('Close reason')
    t.same(rows.map(([reason]) => reason), CLOSE_REASONS)
    const service = await serve(t)
    for (const [reason, , comeBack] of [...rows, ['kicked', '', 'no']]) {
      if (comeBack === '') continue
      const { stream, connection } = await service.join()
      connection.close(reason)
      await stream.until(() => stream.named('sse:close').length >= 1)
      t.same(payloads(stream, 'sse:close'), [{ reason, reconnect: comeBack === 'yes' }])
    }
  })

  t.test('reasons of a gap', async t => {
    // The compiler holds this list to the type.
    const reasons: Record<GapReason, true> = { malformed: true, epoch: true, unknown: true, trimmed: true, limit: true }
    t.same(tableOf('Reason of a gap').map(([reason]) => reason), Object.keys(reasons))
  })

  t.test('control events', async t => {
    const events: Record<ControlEvent, true> = { gap: true, close: true, end: true, error: true, unsubscribed: true, join: true, leave: true, ping: true }
    t.same(tableOf('Event').map(([event]) => event), ['data', 'notification', ...Object.keys(events).map(name => `sse:${name}`)])
  })

  t.test('options of a broadcast', async t => {
    const named = tableOf('Option of a broadcast').flatMap(([cell]) => cell!.split(/`?, `?/))
    const { sse } = (await serve(t)).app
    for (const name of named) {
      const error = await sse.broadcastEvent({ data: 1 }, { [name]: Symbol('wrong') }).catch(error => error)
      t.ok(error instanceof SSEError && !error.message.includes('unknown property'), name)
    }
    t.same(named.sort(), membersOf('BroadcastOptions').map(({ name }) => name).sort())
  })

  t.test('members of a connection', async t => {
    const named = tableOf('Member of a connection').flatMap(([cell]) => Array.from(cell!.matchAll(/\w+(?=\(|`|,|$)/g), ([name]) => name))
    t.same(named.sort(), membersOf('SSEConnection').map(({ name }) => name).sort())
  })

  t.test('patterns', async t => {
    const { join, app: { sse } } = await serve(t)
    const topics = (cell: string) => Array.from(cell.matchAll(/[\w:]+/g), ([topic]) => topic).filter(topic => topic !== 'everything')
    for (const [subscription, covered, uncovered] of tableOf('Subscription')) {
      const { connection } = await join(null, [subscription!])
      for (const topic of topics(covered!)) t.equal(connection.hasSubscription(topic), true, `${subscription} covers ${topic}`)
      for (const topic of topics(uncovered!)) t.equal(connection.hasSubscription(topic), false, `${subscription} does not cover ${topic}`)
      connection.close()
    }
    t.equal((await sse.broadcastEvent({ data: 1 })).delivered, 0)
  })

  t.test('the two commands', async t => {
    const { scripts } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8'))
    t.match(pageAt('README.md').text, /^npm ci && npm start +#/m)
    t.match(pageAt('README.md').text, /^npm ci && npm test +#/m)
    t.match(scripts.start, 'example-app/server.ts')
    for (const step of ['lint', 'check', 'build', 'test:unit', 'test:types', 'test:package']) t.match(scripts.test, new RegExp(`npm run ${step}(?: |$)`))
    t.match(await readFile(join(ROOT, '.ci/run'), 'utf8'), /^ *npm ci && npm test$/m)
    t.ok((await stat(join(ROOT, '.ci/run'))).mode & 0o100, '.ci/run is executable')
    t.ok(existsSync(join(ROOT, 'LICENSE')))
  })
})
