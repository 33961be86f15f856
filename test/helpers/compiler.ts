import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import ts from 'typescript'
import { ROOT, type Sample } from './pages.js'

/** What the package exports, and where that is made. */
export const ENTRIES = { 'fastify-sse-manager': 'lib/index.ts', 'fastify-sse-manager/admin': 'lib/admin/index.ts', 'fastify-sse-manager/client': 'lib/client/index.ts', 'fastify-sse-manager/client/tabs': 'lib/client/tabs.ts', 'fastify-sse-manager/metrics': 'lib/metrics/index.ts', 'fastify-sse-manager/otel': 'lib/otel/index.ts', 'fastify-sse-manager/redis': 'lib/redis.ts', 'fastify-sse-manager/testing': 'lib/testing/index.ts' }

/** What samples use and leave to the reader. */
const GLOBALS = `
import type { LanguageModel, UIMessage } from 'ai'
import type { FastifyInstance, FastifyRequest } from 'fastify'
interface Session { userId: string, expiresAt: number, role: string }
declare global {
  const app: FastifyInstance
  const clientId: string
  const model: { stream (prompt: string, options: { signal: AbortSignal }): AsyncIterable<string> }
  const languageModel: LanguageModel
  function loadChat (chatId: string, userId: string): Promise<UIMessage[]>
  function saveChat (chatId: string, userId: string, messages: UIMessage[]): Promise<void>
  function validateToken (token: string): Promise<string | null>
  function findSession (id: string | undefined): Promise<Session | null>
  function redeemTicket (ticket: unknown): Promise<Session | null>
  function findApiKey (key: unknown): Promise<string | null>
  function verifySession (request: FastifyRequest): Promise<void>
  function loadOrders (topics: readonly string[]): Promise<{ id: string, version: number }[]>
  function loadPrices (signal: AbortSignal): Promise<Record<string, number>>
  function roomsOf (userId: string): Set<string>
}`

const DIRECTORY = join(ROOT, 'samples')
const parsed = new Map<string, ts.SourceFile | undefined>()

/** What most applications have: `strict`, and nothing stricter. */
const PLAIN = { exactOptionalPropertyTypes: false, noImplicitOverride: false, noFallthroughCasesInSwitch: false }

/**
 * What the compiler says of the samples, as one program: under the repository's own options or those of most applications, with the
 * package's name leading to lib/.
 */
export function compile (samples: readonly Sample[], under: 'own' | 'plain' = 'own'): string[] {
  const files = new Map(samples.map(({ name, text }) => [join(DIRECTORY, `${name}.ts`), `${text}\nexport {}\n`]))
  files.set(join(DIRECTORY, 'globals.d.ts'), GLOBALS)
  const { host, options } = programOf(files)
  const program = ts.createProgram([...files.keys()], { ...options, ...(under === 'plain' && PLAIN) }, host)
  return [...program.getOptionsDiagnostics(), ...[...files.keys()].flatMap(path => {
    const file = program.getSourceFile(path)
    return [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)]
  })].map(({ file, start = 0, messageText }) => {
    const place = file === undefined ? '' : `${file.fileName.slice(DIRECTORY.length + 1)}:${file.getLineAndCharacterOfPosition(start).line + 1}: `
    return place + ts.flattenDiagnosticMessageText(messageText, '\n')
  })
}

/** Files of a program that are nowhere but here, and the options under which they are compiled. */
function programOf (files: ReadonlyMap<string, string>): { host: ts.CompilerHost, options: ts.CompilerOptions } {
  const { config } = ts.readConfigFile(join(ROOT, 'tsconfig.json'), path => readFileSync(path, 'utf8'))
  const { options } = ts.parseJsonConfigFileContent({ ...config, files: [], include: undefined }, ts.sys, ROOT)
  options.noEmit = true
  options.paths = Object.fromEntries(Object.entries(ENTRIES).map(([name, file]) => [name, [join(ROOT, file)]]))
  const host = ts.createCompilerHost(options)
  const { directoryExists, fileExists, getSourceFile, readFile } = host
  // Samples of one page may import each other.
  host.directoryExists = path => path === DIRECTORY || directoryExists!.call(host, path)
  host.fileExists = path => files.has(path) || fileExists.call(host, path)
  host.readFile = path => files.get(path) ?? readFile.call(host, path)
  // Everything but the samples is the same in each program.
  host.getSourceFile = (path, ...rest) => {
    if (files.has(path)) return getSourceFile.call(host, path, ...rest)
    if (!parsed.has(path)) parsed.set(path, getSourceFile.call(host, path, ...rest))
    return parsed.get(path)
  }
  return { host, options }
}

/** What an editor shows in a program of one file, where each of the names first stands: its documentation. */
export function documentationIn (text: string, names: readonly string[]): Map<string, string> {
  const path = join(DIRECTORY, 'hover.ts')
  const { host, options } = programOf(new Map([[path, text]]))
  const service = ts.createLanguageService({
    getCompilationSettings: () => options,
    getCurrentDirectory: () => ROOT,
    getDefaultLibFileName: options => host.getDefaultLibFileName(options),
    getScriptFileNames: () => [path],
    getScriptVersion: () => '',
    getScriptSnapshot: path => {
      const text = host.readFile(path)
      return text === undefined ? undefined : ts.ScriptSnapshot.fromString(text)
    },
    fileExists: host.fileExists,
    readFile: host.readFile
  })
  return new Map(names.map(name => {
    const info = service.getQuickInfoAtPosition(path, new RegExp(`\\b${name}: `).exec(text)!.index)
    return [name, ts.displayPartsToString(info?.documentation)]
  }))
}

/** A member of a type, as its declaration has it. */
export interface Member {
  readonly name: string
  /** Its type as it is written; `function` for a method. */
  readonly type: string
  readonly documentation: string
}

let program: ts.Program | null = null

/** The package as one program, which begins at the files of `ENTRIES`. */
export function packageProgram (): ts.Program {
  if (program === null) {
    const { host, options } = programOf(new Map())
    program = ts.createProgram(Object.values(ENTRIES).map(entry => join(ROOT, entry)), options, host)
  }
  return program
}

/** The public members of a type that the package exports, also those that it inherits. */
export function membersOf (type: string, entry: keyof typeof ENTRIES = 'fastify-sse-manager'): Member[] {
  const program = packageProgram()
  const checker = program.getTypeChecker()
  const [shown] = checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(join(ROOT, ENTRIES[entry]))!)!)
    .filter(({ name }) => name === type)
    .map(symbol => (symbol.flags & ts.SymbolFlags.Alias) === 0 ? symbol : checker.getAliasedSymbol(symbol))
  return checker.getPropertiesOfType(checker.getDeclaredTypeOfSymbol(shown!)).flatMap(symbol => {
    const declaration = symbol.declarations![0]!
    const isHidden = (ts.getCombinedModifierFlags(declaration) & (ts.ModifierFlags.Private | ts.ModifierFlags.Protected)) !== 0 || ts.getJSDocTags(declaration).some(({ tagName }) => tagName.text === 'internal')
    if (isHidden || ts.isPrivateIdentifier(ts.getNameOfDeclaration(declaration)!)) return []
    let written = ts.isPropertySignature(declaration) ? declaration.type?.getText().replace(/\/\*.*?\*\/|\n/gs, '').replace(/ +/g, ' ') : undefined
    // The name of a type parameter says less than its default.
    for (const { name, default: otherwise } of (declaration.parent as ts.InterfaceDeclaration).typeParameters ?? []) written = written?.replace(new RegExp(`\\b${name.text}\\b`), otherwise?.getText() ?? name.text)
    return [{ name: symbol.name, type: written ?? 'function', documentation: ts.displayPartsToString(symbol.getDocumentationComment(checker)).replaceAll('\n', ' ') }]
  })
}

/** The sample as JavaScript that runs here: the package's name leads to lib/, ports are free ones. */
export function transpile ({ text }: Sample, exports: readonly string[] = []): string {
  const source = text
    .replace(/'(fastify-sse-manager(?:\/\w+)*)'/g, (_, name: keyof typeof ENTRIES) => JSON.stringify(pathToFileURL(join(ROOT, ENTRIES[name].replace(/ts$/, 'js'))).href))
    .replace(/\bport: 3000\b/g, "port: 0, host: '127.0.0.1'")
    .replace(/\.listen\(3000\)/g, ".listen(0, '127.0.0.1')")
  const { outputText } = ts.transpileModule(source, { compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext } })
  return `${outputText}\nexport { ${exports.join(', ')} }\n`
}
