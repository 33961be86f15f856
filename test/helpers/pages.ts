import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const ROOT = fileURLToPath(new URL('../..', import.meta.url))

/** A page of the documentation. */
export interface Page {
  /** From the root of the repository, such as `docs/guides/testing.md`. */
  readonly path: string
  readonly text: string
}

/** README, the pages of docs/, and the other texts of the repository that people read. Not the API reference, which is made from comments. */
export const PAGES: readonly Page[] = [
  'README.md', 'SECURITY.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'example-app/README.md',
  ...readdirSync(join(ROOT, 'docs'), { recursive: true, encoding: 'utf8' }).filter(file => file.endsWith('.md') && !file.startsWith(join('reference', 'api'))).sort().map(file => `docs/${file}`)
].map(path => ({ path, text: readFileSync(join(ROOT, path), 'utf8') }))

export function pageAt (path: string): Page {
  return PAGES.find(page => page.path === path)!
}

export interface Sample {
  language: 'ts' | 'js'
  name: string
  text: string
}

/** The program samples of all pages: fences of TypeScript and JavaScript, each with a name of its own. */
export const SAMPLES: readonly Sample[] = PAGES.flatMap(({ text }) =>
  Array.from(text.matchAll(/^```(ts|js)(?: (\S+))?\n(.*?)^```$/gms), ([, language, name = '', text]) => ({ language: language as Sample['language'], name, text: text! })))

export function sampleOf (name: string): Sample {
  return SAMPLES.find(sample => sample.name === name)!
}

/** The first fence of a language in a page. */
export function fenceIn (path: string, language: string): string {
  return new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\`$`, 'ms').exec(pageAt(path).text)![1]!
}

export const linesOf = (text: string): number => text.trimEnd().split('\n').length

/** The rows of the table whose header begins with `first`, on whatever page; code marks are left out. */
export function tableOf (first: string): string[][] {
  const rows: string[][] = []
  for (const { text } of PAGES) {
    const lines = text.split('\n')
    const start = lines.findIndex(line => line.startsWith(`| ${first} |`))
    if (start < 0) continue
    for (const line of lines.slice(start + 2)) {
      if (!line.startsWith('|')) break
      rows.push(line.slice(1, -1).split('|').map(cell => cell.trim().replace(/^`(.*)`$/, '$1')))
    }
  }
  return rows
}
