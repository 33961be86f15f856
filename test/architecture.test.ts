import { readdir, readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import ts from 'typescript'
import { roomOf, ROOMS } from './helpers/rooms.js'

// The rules of the layout that a compiler does not know.

/** Who may load these at run time, and who may know their types. `@fastify/error` and `fastify-plugin` are plain libraries. */
const FASTIFY_VALUES = ['fastify/strategies']
const FASTIFY_TYPES = ['admin/guard', 'admin/index', 'admin/options', 'fastify/declared-routes', 'fastify/endpoint', 'fastify/guard', 'fastify/hijacking-body', 'fastify/log-redaction', 'fastify/pin-hooks', 'fastify/plugin', 'fastify/reply', 'fastify/route', 'fastify/servers', 'fastify/strategies', 'options', 'testing/link', 'wire/http']
/** Who may load parts of Node that reach sockets. */
const SOCKETS = ['cli/exchange', 'fastify/hijacking-body', 'testing/free-port', 'testing/link', 'testing/memory-socket', 'testing/open-stream', 'testing/slow-redis', 'testing/test-stream', 'wire/http']

/** Who may look at the machine's clock, or set a timer by it. All else takes the time of the node, `util/clock`, which tests move. */
const REAL_TIME: Record<string, string> = {
  'cluster/cluster': 'how long other nodes, which are machines, take to answer a greeting',
  'cluster/scatter-gather': 'how long other nodes take to answer',
  'delivery/flusher': 'how long writing takes, and how often it begins',
  'delivery/replay-scheduler': 'how long reading takes, and when a log that has failed is tried again',
  'diagnostics/telemetry': 'how long a publish takes',
  'fastify/idle-sockets': 'how long a socket is idle while the server closes',
  'fastify/reply': 'how long an error handler of the application takes to answer',
  'log/redis/appender': 'how long Redis takes to answer',
  'log/redis/cursor-ahead': 'how long Redis, and this node, take',
  'log/redis/history-cache': 'entries have times of Redis',
  'log/redis/node-channel': 'how long Redis takes to answer',
  'log/redis/on-demand': 'how long a connection to Redis is idle',
  'log/redis/read-size': 'how long Redis takes to answer',
  'log/redis/reader': 'how late an entry of Redis is',
  'log/redis/reconnector': 'when Redis is tried again',
  'log/redis/server-clock': 'the difference to the clock of Redis',
  'otel/index': 'spans have times of the machine',
  'testing/broker-harness': 'deadlines of tests',
  'testing/inbox': 'deadlines of tests',
  'testing/memory-socket': 'the rate at which a test reads',
  'testing/open-stream': 'deadlines of tests',
  'testing/run-store-contract': 'time after which a run is removed',
  'testing/shared-broker-contract': 'deadlines of tests',
  'testing/slow-redis': 'the rate of a slow network',
  'testing/test-clock': 'the time at which the clock of a test begins, and what it waits for',
  'testing/test-node': 'deadlines of tests',
  'testing/test-stream': 'the rate at which a test reads, and how long its server takes to notice its end',
  'util/clock': 'the clock of production',
  'util/timeout': 'how long a reply takes',
  'wire/http': 'how long the end of a session takes'
}

const LIB = fileURLToPath(new URL('../lib', import.meta.url))

interface Import { from: string, typeOnly: boolean }
interface Module { name: string, imports: Import[], texts: string[], constructed: string[], called: string[], isTimed: boolean }

/** What a file imports, the texts it writes and what it constructs; comments do not count. */
function read (name: string, text: string): Module {
  const module: Module = { name, imports: [], texts: [], constructed: [], called: [], isTimed: false }
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node)) {
      if (/^(?:node:)?timers/.test((node.moduleSpecifier as ts.StringLiteral).text) && /\bset(?:Timeout|Interval)\b/.test(node.getText())) module.isTimed = true
      const clause = node.importClause
      const bindings = clause?.namedBindings
      const named = bindings !== undefined && ts.isNamedImports(bindings) ? bindings.elements : []
      // `import { type A }` alone is erased as well: the build does not keep what is not used as a value.
      const typeOnly = clause !== undefined && (clause.phaseModifier === ts.SyntaxKind.TypeKeyword || (clause.name === undefined && named.length > 0 && named.every(element => element.isTypeOnly)))
      module.imports.push({ from: (node.moduleSpecifier as ts.StringLiteral).text, typeOnly })
      return
    }
    if (ts.isExportDeclaration(node) && node.moduleSpecifier !== undefined) {
      module.imports.push({ from: (node.moduleSpecifier as ts.StringLiteral).text, typeOnly: node.isTypeOnly })
      return
    }
    if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) module.imports.push({ from: node.arguments[0]!.getText(), typeOnly: false })
    if (ts.isStringLiteral(node) || ts.isNoSubstitutionTemplateLiteral(node) || ts.isTemplateHead(node) || ts.isTemplateMiddle(node) || ts.isTemplateTail(node)) module.texts.push(node.text)
    if (ts.isCallExpression(node)) module.called.push(node.expression.getText())
    if (isTimed(node)) module.isTimed = true
    if (ts.isNewExpression(node)) module.constructed.push(node.expression.getText())
    ts.forEachChild(node, visit)
  }
  visit(ts.createSourceFile(name, text, ts.ScriptTarget.ES2022, true))
  return module
}

/** Whether the code names the clock of the machine, or its timers. */
function isTimed (node: ts.Node): boolean {
  if (ts.isPropertyAccessExpression(node)) return /^(?:globalThis\.)?(?:Date\.now|performance\.now|process\.hrtime)$/.test(node.getText())
  if (ts.isNewExpression(node)) return node.expression.getText() === 'Date' && (node.arguments ?? []).length === 0
  return ts.isIdentifier(node) && /^set(?:Timeout|Interval)$/.test(node.text)
}

const files = (await readdir(LIB, { recursive: true })).filter(file => file.endsWith('.ts')).map(file => file.replaceAll('\\', '/').slice(0, -'.ts'.length)).sort()
const modules = await Promise.all(files.map(async file => read(file, await readFile(join(LIB, `${file}.ts`), 'utf8'))))

/** The file that an import leads to; null for one outside lib/ and types/. */
function inside (module: Module, { from }: Import): string | null {
  return from.startsWith('.') ? join('lib', dirname(module.name), from).replaceAll('\\', '/').replace(/\.js$/, '.ts') : null
}

const paths = modules.map(module => ({ path: `lib/${module.name}.ts`, imports: module.imports.flatMap(item => inside(module, item) ?? []) }))

t.test('each file has a room, and each room has files', async t => {
  const files = [...paths.map(({ path }) => path), 'types/index.ts', 'types/options.ts']
  t.same(files.filter(file => roomOf(file) < 0), [])
  t.same(ROOMS.filter((_, room) => !files.some(file => roomOf(file) === room)), [])
})

t.test('imports go one way, types included', async t => {
  const upward = paths.flatMap(({ path, imports }) => imports.filter(target => roomOf(target) < 0 || roomOf(target) > roomOf(path)).map(target => `${path} → ${target}`))
  t.same(upward, [])
  t.ok(paths.flatMap(({ imports }) => imports).length > files.length, 'imports were found at all')
})

t.test('within a room no file reaches itself', async t => {
  const neighbours = new Map(paths.map(({ path, imports }) => [path, imports.filter(target => roomOf(target) === roomOf(path))]))
  const reach = (file: string, seen = new Set<string>()): Set<string> => {
    for (const target of neighbours.get(file) ?? []) if (!seen.has(target)) reach(target, seen.add(target))
    return seen
  }
  t.same(paths.map(({ path }) => path).filter(path => reach(path).has(path)), [])
})

t.test('the client loads nothing of the server but the clock', async t => {
  const loaded = modules.filter(({ name }) => name.startsWith('client/')).flatMap(module => module.imports.filter(({ typeOnly }) => !typeOnly).map(item => inside(module, item) ?? item.from))
  t.same(new Set(loaded.filter(target => !target.startsWith('lib/client/'))), new Set(['lib/util/clock.ts']))
})

t.test('only the Fastify-facing files know Fastify', async t => {
  const users = (typeOnly: boolean) => modules
    .filter(({ imports }) => imports.some(item => item.typeOnly === typeOnly && /^(?:fastify(?:\/.*)?|@fastify\/(?!error$).*)$/.test(item.from)))
    .map(({ name }) => name)
  t.same(users(false), FASTIFY_VALUES)
  t.same(users(true), FASTIFY_TYPES)
})

t.test('only the files that write load what writes', async t => {
  const users = modules.filter(({ imports }) => imports.some(item => !item.typeOnly && /^node:(?:http|http2|https|net|tls|stream)$/.test(item.from))).map(({ name }) => name)
  t.same(users, SOCKETS)
})

t.test('only the encoding writes fields of the wire format', async t => {
  const writers = modules.filter(({ texts }) => texts.some(text => /(?:^|\n)(?:data|event|id|retry): /.test(text))).map(({ name }) => name)
  t.same(writers, ['wire/event-stream'])
})

t.test('all errors come from errors.ts', async t => {
  const own = modules.flatMap(({ name, constructed }) => constructed.filter(what => /^(?:globalThis\.)?(?:|Type|Range|Syntax|Reference|Aggregate|SSE)Error$/.test(what)).map(what => `${name}: new ${what}`))
  t.same(own, [])
  t.ok(modules.some(({ constructed }) => constructed.includes('Unauthenticated')), 'errors are made at all')
})

t.test('the application\'s logger is called through safeLog only: whatever it throws, a delivery goes on', async t => {
  // A manager is given one logger, which its constructor wraps; those of Fastify's requests are wrapped where they are used.
  const direct = modules.filter(({ called }) => called.some(what => /(?:^|\.)(?:request|reply|fastify|scope)\.log\.(?!child$)/.test(what))).map(({ name }) => name)
  t.same(direct, [])
  t.ok(modules.some(({ called }) => called.some(what => what.startsWith('safeLog(request.log).'))), 'calls were found at all')
})

t.test('what users see of time goes by the clock of the node', async t => {
  t.same(modules.filter(({ isTimed }) => isTimed).map(({ name }) => name), Object.keys(REAL_TIME))
})

t.test('each file loads by itself, so that coverage sees all of them', async t => {
  for (const file of files) t.type(await import(`../lib/${file}.js`), 'object', file)
})
