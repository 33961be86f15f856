import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { ROOT } from './pages.js'

/**
 * Builds the files that `fastify-sse-manager/client` and `fastify-sse-manager/client/tabs` lead to, as `npm run build` does, in this directory:
 * `index.js` and `tabs.js`. Returns the path of the first.
 */
export function buildClient (directory: string): string {
  const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))
  const [command, ...args] = (scripts['build:client'] as string).replace(/--outdir=\S+/, `--outdir=${directory}`).split(' ')
  const { status, stderr } = spawnSync(join(ROOT, 'node_modules/.bin', command!), args, { cwd: ROOT, encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
  return join(directory, 'index.js')
}
