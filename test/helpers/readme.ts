import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import type { TSchema } from '@sinclair/typebox'
import ts from 'typescript'

export const ROOT = fileURLToPath(new URL('../..', import.meta.url))
/** What the package exports, and where that is made. */
const ENTRIES = { 'fastify-sse-manager': 'lib/index.ts', 'fastify-sse-manager/redis': 'lib/redis.ts', 'fastify-sse-manager/testing': 'lib/testing/index.ts' }
export const README = join(ROOT, 'README.md')
/** The options as an editor shows them. */
export const OPTIONS = join(ROOT, 'types/options.ts')

/** What samples use and leave to the reader. */
export const GLOBALS = `
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

export interface Sample {
  language: 'ts' | 'js'
  name: string
  text: string
}

/** The program samples, in order: fences of TypeScript and JavaScript, each with a name of its own. */
export function samplesOf (readme: string): Sample[] {
  return Array.from(readme.matchAll(/^```(ts|js)(?: (\S+))?\n(.*?)^```$/gms), ([, language, name = '', text]) => ({ language: language as Sample['language'], name, text: text! }))
}

/** The rows of the table whose header begins with `first`; code marks are left out. */
export function tableOf (readme: string, first: string): string[][] {
  const lines = readme.split('\n')
  const start = lines.findIndex(line => line.startsWith(`| ${first} |`))
  if (start < 0) return []
  const rows: string[][] = []
  for (const line of lines.slice(start + 2)) {
    if (!line.startsWith('|')) break
    rows.push(line.slice(1, -1).split('|').map(cell => cell.trim().replace(/^`(.*)`$/, '$1')))
  }
  return rows
}

/** README's table of the options of a schema. */
export function optionsTable (options: TSchema): string {
  const rows = ['| Option | Type | Default | Meaning |', '|---|---|---|---|']
  const add = (schema: TSchema, prefix: string) => {
    for (const [name, property] of Object.entries(schema.properties as Record<string, TSchema>)) {
      const path = prefix + name
      const standard = property.properties !== undefined || property.default === undefined ? '' : code(property.default)
      rows.push(`| \`${path}\` | ${typeOf(property)} | ${standard} | ${property.description} |`)
      if (property.properties !== undefined) add(property, `${path}.`)
    }
  }
  add(options, '')
  return rows.join('\n')
}

/**
 * The options of a schema as an interface, each with its meaning, range and default: a type that is inferred from a schema has none to show.
 * @param resolved the type that is inferred.
 */
export function optionsInterface (name: string, about: string, options: TSchema, resolved: string): string {
  const members = (schema: TSchema, type: string, indent: string): string[] => Object.entries(schema.properties as Record<string, TSchema>).flatMap(([name, property]) => {
    const nested = property.properties !== undefined
    const range = property.type === 'integer' ? ` ${typeOf(property).replace(/^i/, 'I')}.` : ''
    const standard = nested || property.default === undefined ? '' : ` Default ${code(property.default)}.`
    const required = (schema.required as string[]).includes(name) && property.default === undefined
    const member = `${indent}${name}${required ? '' : '?'}: `
    return [
      ...comment(`${property.description}${range}${standard}`, indent),
      ...nested ? [`${member}{`, ...members(property, `${type}['${name}']`, `${indent}  `), `${indent}}`] : [`${member}${type}['${name}']`]
    ]
  })
  return [...comment(about, ''), `export interface ${name} {`, ...members(options, resolved, '  '), '}'].join('\n')
}

function comment (text: string, indent: string): string[] {
  if (text.length < 120) return [`${indent}/** ${text} */`]
  const lines = Array.from(text.matchAll(/(.{1,120})(?: |$)/g), ([, line]) => `${indent} * ${line}`)
  return [`${indent}/**`, ...lines, `${indent} */`]
}

function typeOf (schema: TSchema): string {
  if (schema.anyOf !== undefined) return (schema.anyOf as TSchema[]).map(typeOf).join(' or ')
  if (schema.const !== undefined) return code(schema.const)
  if (schema.properties !== undefined) {
    const names = Object.keys(schema.properties as object)
    return names.length === 1 ? `\`{ ${names[0]} }\`` : 'object'
  }
  if (schema.type === 'array') return Array.isArray(schema.items?.anyOf) ? 'array of functions' : `array of ${typeOf(schema.items as TSchema)}s`
  if (schema.type === 'integer') return schema.maximum >= 2 ** 31 - 1 ? `integer from ${number(schema.minimum)}` : `integer, ${number(schema.minimum)} to ${number(schema.maximum)}`
  return String(schema.type ?? 'object').toLowerCase()
}

function code (value: unknown): string {
  return `\`${typeof value === 'string' ? `'${value}'` : typeof value === 'number' ? number(value) : JSON.stringify(value)}\``
}

function number (value: number): string {
  return String(value).replace(/\B(?=(?:\d{3})+$)/g, '_')
}

const DIRECTORY = join(ROOT, 'readme')
const parsed = new Map<string, ts.SourceFile | undefined>()

/**
 * What the compiler says of the samples, as one program: under the repository's own options, with the package's name
 * leading to lib/. `globals` are the names that samples use and do not declare.
 */
export function compile (samples: readonly Sample[], globals: string): string[] {
  const files = new Map(samples.map(({ name, text }) => [join(DIRECTORY, `${name}.ts`), `${text}\nexport {}\n`]))
  files.set(join(DIRECTORY, 'globals.d.ts'), globals)
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
