import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { dirname, posix } from 'node:path'
import { fileURLToPath } from 'node:url'

// What `npm publish` would publish: all that is needed, with links that lead somewhere, and no more than that.

/** Bytes of the tarball. A larger one needs a reason. */
const MAX_BYTES = 800_000
const MAX_UNPACKED_BYTES = 4_200_000

const root = fileURLToPath(new URL('..', import.meta.url))
const [{ files, size, unpackedSize }] = JSON.parse(execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd: root, encoding: 'utf8', shell: process.platform === 'win32' }))
const paths = new Set(files.map(({ path }) => path))
const read = path => readFileSync(posix.join(root, path), 'utf8')
const { bin, exports } = JSON.parse(read('package.json'))

console.log(`${paths.size} files, ${size} bytes packed, ${unpackedSize} unpacked`)
assert.ok(size <= MAX_BYTES, `${size} bytes packed`)
assert.ok(unpackedSize <= MAX_UNPACKED_BYTES, `${unpackedSize} bytes unpacked`)

const leads = value => typeof value === 'string' ? [value] : Object.values(value).flatMap(leads)
for (const path of ['README.md', 'LICENSE', 'SECURITY.md', 'CHANGELOG.md', ...leads(exports), bin].map(path => posix.normalize(path))) assert.ok(paths.has(path), `${path} is missing`)
assert.deepEqual([...paths].filter(path => /^(?:test|lib|\.)|\.tst\./.test(path)), [])

// Every relative link of every page leads to a file of the tarball, or to a directory of it.
const pages = [...paths].filter(path => path.endsWith('.md'))
const isThere = path => paths.has(path) || pages.some(page => page.startsWith(`${path.replace(/\/$/, '')}/`))
const dangling = pages.flatMap(page => Array.from(read(page).replace(/^```.*?^```$/gms, '').matchAll(/\]\((?!\w+:)([^)#\s]+)(?:#[^)]*)?\)/g), ([, link]) => [page, posix.join(dirname(page), link)]))
  .filter(([, target]) => !isThere(target))
  .map(([page, target]) => `${page} → ${target}`)
assert.deepEqual(dangling, [])
assert.ok(pages.length > 40)

// Each entry point has a page of the API reference that names all its exports.
for (const [subpath, entry] of Object.entries(exports)) {
  if (entry.import === undefined) continue
  const [, name] = /\/lib\/(.*?)(?:\/index)?\.d\.ts$/.exec(entry.import.types)
  const page = `docs/reference/api/${name}.md`
  assert.ok(paths.has(page), `${page} is missing: npm run build makes it`)
  const headings = new Set(Array.from(read(page).matchAll(/^#+ (?:`abstract` )?(\w+)/gm), ([, heading]) => heading))
  const names = Object.keys(await import(posix.join('fastify-sse-manager', subpath))).filter(name => !['default', 'module.exports'].includes(name))
  assert.deepEqual(names.filter(name => !headings.has(name)), [], `${page} is not up to date: npm run build makes it`)
}
