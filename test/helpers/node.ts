import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Test } from 'tap'
import ts from 'typescript'
import { ROOT } from './pages.js'
import { startNode, type TestNode } from '../../lib/testing/test-node.js'

/** What nodes run, as JavaScript in a directory of the test's: one that is restarted is back in a moment, as in production. */
export function buildNode (t: Test, main = 'test/helpers/node-main.ts'): string {
  const directory = t.testdir({ 'package.json': '{ "type": "module" }' })
  const lib = readdirSync(join(ROOT, 'lib'), { recursive: true }).map(file => join('lib', String(file)))
  for (const file of [...lib.filter(file => file.endsWith('.ts')), main]) {
    const { outputText } = ts.transpileModule(readFileSync(join(ROOT, file), 'utf8'), { compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext } })
    mkdirSync(dirname(join(directory, file)), { recursive: true })
    writeFileSync(join(directory, file.replace(/ts$/, 'js')), outputText)
  }
  return join(directory, main.replace(/ts$/, 'js'))
}

/**
 * Starts one node of an application with many. It is killed when the test ends.
 * @param main made by `buildNode`: JavaScript, which needs no loader.
 */
export async function startApplicationNode (t: Test, main: string, redisUrl: string): Promise<TestNode> {
  return await startNode(main, { test: t, args: [redisUrl], execArgv: [], timeoutMs: 60_000 })
}
