import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import type { TSchema } from '@sinclair/typebox'
import ts from 'typescript'

export const ROOT = fileURLToPath(new URL('../..', import.meta.url))
/** What the package exports, and where that is made. */
const ENTRIES = { 'fastify-sse-manager': 'lib/index.ts', 'fastify-sse-manager/redis': 'lib/brokers/redis-streams.ts', 'fastify-sse-manager/testing': 'lib/testing/contract.ts' }
export const README = join(ROOT, 'README.md')

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
  const { config } = ts.readConfigFile(join(ROOT, 'tsconfig.json'), path => readFileSync(path, 'utf8'))
  const { options } = ts.parseJsonConfigFileContent({ ...config, files: [], include: undefined }, ts.sys, ROOT)
  options.noEmit = true
  options.paths = Object.fromEntries(Object.entries(ENTRIES).map(([name, file]) => [name, [join(ROOT, file)]]))
  const files = new Map(samples.map(({ name, text }) => [join(DIRECTORY, `${name}.ts`), `${text}\nexport {}\n`]))
  files.set(join(DIRECTORY, 'globals.d.ts'), globals)
  const host = ts.createCompilerHost(options)
  const { fileExists, getSourceFile, readFile } = host
  host.fileExists = path => files.has(path) || fileExists.call(host, path)
  host.readFile = path => files.get(path) ?? readFile.call(host, path)
  // Everything but the samples is the same in each program.
  host.getSourceFile = (path, ...rest) => {
    if (files.has(path)) return getSourceFile.call(host, path, ...rest)
    if (!parsed.has(path)) parsed.set(path, getSourceFile.call(host, path, ...rest))
    return parsed.get(path)
  }
  const program = ts.createProgram([...files.keys()], options, host)
  return [...program.getOptionsDiagnostics(), ...[...files.keys()].flatMap(path => {
    const file = program.getSourceFile(path)
    return [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)]
  })].map(({ file, start = 0, messageText }) => {
    const place = file === undefined ? '' : `${file.fileName.slice(DIRECTORY.length + 1)}:${file.getLineAndCharacterOfPosition(start).line + 1}: `
    return place + ts.flattenDiagnosticMessageText(messageText, '\n')
  })
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
