import { readdir, readFile } from 'node:fs/promises'
import { dirname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import ts from 'typescript'

// The rules of the house that a compiler does not know. A new file in lib/ has to be given its place here.

/** Lowest first: a file imports values only from layers below its own. Type-only imports are free, they leave no trace at run time. */
const LAYERS = [
  ['access/address', 'cluster/commands-heard', 'cluster/membership', 'cluster/node-message', 'connections/drain', 'connections/outbox-lane', 'connections/wall-clock', 'errors', 'events/conflation', 'fastify/request-serializer', 'fastify/route-options', 'log/broker', 'log/health', 'log/redis/portion', 'log/redis/reconnector', 'subscriptions/multimap', 'subscriptions/yes', 'util/async-context', 'util/id', 'util/logger', 'util/memory-budget', 'util/text', 'wire/chunk', 'wire/headers', 'wire/http'],
  ['access/capacity', 'access/connect-options', 'access/disconnected-users', 'cluster/commands', 'cluster/scatter-gather', 'connections/close-reason', 'connections/timing-wheel', 'delivery/replay-scheduler', 'events/event', 'events/topic', 'fastify/reply-body', 'log/redis/history-reader', 'log/redis/lag', 'util/schema', 'util/timeout', 'wire/idle-sockets', 'wire/writer'],
  ['access/authentication', 'access/refusal', 'cluster/presence', 'connections/statistics', 'events/catalogue', 'events/target', 'fastify/endpoint', 'fastify/servers', 'log/cursor', 'log/redis/client', 'subscriptions/match-cache'],
  ['access/tickets', 'cluster/cluster', 'delivery/frame', 'events/message', 'log/redis/script', 'log/ring', 'options', 'subscriptions/pattern-index', 'subscriptions/subscriptions', 'testing/broker-contract'],
  ['connections/outbox', 'delivery/flusher', 'delivery/frame-cache', 'delivery/publisher', 'fastify/authentication', 'fastify/route', 'log/memory', 'log/redis/appender', 'log/redis/history-cache', 'log/redis/store', 'streams/source', 'subscriptions/registry'],
  ['connections/backlog', 'connections/context', 'fastify/declared-routes', 'fastify/reply', 'log/redis/reader'],
  ['connections/connection'],
  ['access/admission', 'log/redis/broker'],
  ['manager'],
  ['fastify/plugin'],
  ['index']
]
/** Who may load these at run time, and who may know their types. `@fastify/error` and `fastify-plugin` are plain libraries. */
const FASTIFY_VALUES = ['fastify/authentication']
const FASTIFY_TYPES = ['fastify/authentication', 'fastify/declared-routes', 'fastify/endpoint', 'fastify/plugin', 'fastify/reply', 'fastify/reply-body', 'fastify/request-serializer', 'fastify/route', 'fastify/route-options', 'fastify/servers', 'options']
/** Who may load parts of Node that reach sockets. */
const SOCKETS = ['fastify/reply-body', 'wire/http']

const LIB = fileURLToPath(new URL('../lib', import.meta.url))

interface Import { from: string, typeOnly: boolean }
interface Module { name: string, imports: Import[], texts: string[], constructed: string[], called: string[] }

/** What a file imports, the texts it writes and what it constructs; comments do not count. */
function read (name: string, text: string): Module {
  const module: Module = { name, imports: [], texts: [], constructed: [], called: [] }
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node)) {
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
    if (ts.isNewExpression(node)) module.constructed.push(node.expression.getText())
    ts.forEachChild(node, visit)
  }
  visit(ts.createSourceFile(name, text, ts.ScriptTarget.ES2022, true))
  return module
}

const files = (await readdir(LIB, { recursive: true })).filter(file => file.endsWith('.ts')).map(file => file.replaceAll('\\', '/').slice(0, -'.ts'.length)).sort()
const modules = await Promise.all(files.map(async file => read(file, await readFile(join(LIB, `${file}.ts`), 'utf8'))))

/** The file of lib/ that an import leads to, or null for one outside. */
function inside (module: Module, { from }: Import): string | null {
  if (!from.startsWith('.')) return null
  const path = normalize(join(dirname(module.name), from)).replaceAll('\\', '/').replace(/\.js$/, '')
  return path.startsWith('..') ? null : path
}

t.test('each file has one place', async t => {
  t.same(LAYERS.flat().sort(), files)
})

t.test('imports go one way', async t => {
  const layerOf = new Map(LAYERS.flatMap((names, layer) => names.map(name => [name, layer] as const)))
  const upward: string[] = []
  let seen = 0
  for (const module of modules) {
    for (const item of module.imports) {
      const target = inside(module, item)
      if (target === null || item.typeOnly) continue
      seen++
      if (!(layerOf.get(target)! < layerOf.get(module.name)!)) upward.push(`${module.name} → ${target}`)
    }
  }
  t.same(upward, [])
  t.ok(seen > files.length, 'imports were found at all')
})

t.test('lib imports nothing of the repository but itself and the public types', async t => {
  const strangers = modules.flatMap(module => module.imports
    .filter(item => item.from.startsWith('.') && inside(module, item) === null && !(item.typeOnly && /\/types\/(index|options)\.js$/.test(item.from)))
    .map(({ from }) => `${module.name} → ${from}`))
  t.same(strangers, [])
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

t.test('only event.ts writes fields of the wire format', async t => {
  const writers = modules.filter(({ texts }) => texts.some(text => /(?:^|\n)(?:data|event|id|retry): /.test(text))).map(({ name }) => name)
  t.same(writers, ['events/event'])
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

t.test('each file loads by itself, so that coverage sees all of them', async t => {
  for (const file of files) t.type(await import(`../lib/${file}.js`), 'object', file)
})
