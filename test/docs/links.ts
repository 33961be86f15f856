import { existsSync } from 'node:fs'
import { dirname, join, posix } from 'node:path'
import t from 'tap'
import { PAGES, ROOT } from '../helpers/pages.js'

// Links lead somewhere, and somebody who begins at README finds each page.

const headings = (text: string) => new Set(Array.from(text.replace(/^```.*?^```$/gms, '').matchAll(/^#+ (.*)$/gm), ([, heading]) => heading!.toLowerCase().replace(/[^\w -]/g, '').replaceAll(' ', '-')))

/** What the links of a page lead to, within the repository. */
function linksOf (text: string): { file: string, anchor: string | undefined }[] {
  return Array.from(text.replace(/^```.*?^```$/gms, '').matchAll(/\]\((?!\w+:)([^)#\s]*)(?:#([^)]+))?\)/g), ([, file, anchor]) => ({ file: file!, anchor }))
}

t.test('links lead somewhere', async t => {
  let count = 0
  for (const { path, text } of PAGES) {
    for (const { file, anchor } of linksOf(text)) {
      count++
      const target = file === '' ? path : posix.join(dirname(path), file)
      const page = PAGES.find(page => page.path === target)
      if (page === undefined) t.ok(existsSync(join(ROOT, target)), `${path}: ${file}`)
      else if (anchor !== undefined) t.ok(headings(page.text).has(anchor), `${path}: ${file}#${anchor}`)
    }
  }
  t.ok(count > 100)
})

t.test('each page is reached from README', async t => {
  const reached = new Set(['README.md'])
  for (const path of reached) {
    const { text } = PAGES.find(page => page.path === path)!
    for (const { file } of linksOf(text)) {
      const target = posix.join(dirname(path), file)
      if (PAGES.some(page => page.path === target)) reached.add(target)
    }
  }
  t.same(PAGES.map(({ path }) => path).filter(path => !reached.has(path)), [])
})

t.test('pages are short', async t => {
  for (const { path, text } of PAGES) {
    if (path === 'CHANGELOG.md') continue
    const lines = text.split('\n').length - 1
    t.ok(lines <= 300, `${path} has ${lines} lines`)
  }
})

t.test('each recipe with TypeScript says how to run it on Node.js 20', async t => {
  for (const { path, text } of PAGES) if (path.startsWith('docs/recipes/') && text.includes('\n```ts ')) t.match(text, /Node\.js 20/, path)
})
