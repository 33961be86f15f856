import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import ts from 'typescript'
import { ROOT, type Sample } from './pages.js'

/** What the package exports, and where that is made. */
const ENTRIES = { 'fastify-sse-manager': 'lib/index.ts', 'fastify-sse-manager/redis': 'lib/redis.ts', 'fastify-sse-manager/testing': 'lib/testing/index.ts' }

/** What samples use and leave to the reader. */
const GLOBALS = `
import type { FastifyInstance, FastifyRequest } from 'fastify'
interface Session { userId: string, expiresAt: number, role: string }
declare global {
  const app: FastifyInstance
  const clientId: string
  const model: { stream (prompt: string, options: { signal: AbortSignal }): AsyncIterable<string> }
  function validateToken (token: string): Promise<string | null>
  function findSession (id: string | undefined): Promise<Session | null>
  function redeemTicket (ticket: unknown): Promise<Session | null>
  function findApiKey (key: unknown): Promise<string | null>
  function verifySession (request: FastifyRequest): Promise<void>
  function roomsOf (userId: string): Set<string>
}`

const DIRECTORY = join(ROOT, 'samples')
const parsed = new Map<string, ts.SourceFile | undefined>()

/**
 * What the compiler says of the samples, as one program: under the repository's own options, with the package's name
 * leading to lib/.
 */
export function compile (samples: readonly Sample[]): string[] {
  const files = new Map(samples.map(({ name, text }) => [join(DIRECTORY, `${name}.ts`), `${text}\nexport {}\n`]))
  files.set(join(DIRECTORY, 'globals.d.ts'), GLOBALS)
  const { host, options } = programOf(files)
  const program = ts.createProgram([...files.keys()], options, host)
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

/** The sample as JavaScript that runs here: the package's name leads to lib/, ports are free ones. */
export function transpile ({ text }: Sample, exports: readonly string[] = []): string {
  const source = text
    .replace(/'(fastify-sse-manager(?:\/\w+)?)'/g, (_, name: keyof typeof ENTRIES) => JSON.stringify(pathToFileURL(join(ROOT, ENTRIES[name].replace(/ts$/, 'js'))).href))
    .replace(/\bport: 3000\b/g, "port: 0, host: '127.0.0.1'")
    .replace(/\.listen\(3000\)/g, ".listen(0, '127.0.0.1')")
  const { outputText } = ts.transpileModule(source, { compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext } })
  return `${outputText}\nexport { ${exports.join(', ')} }\n`
}
