import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { tie } from './child.js'

export interface NodeProcess {
  url: string
  process: ChildProcess
}

/** Starts `cluster-node.ts` and waits until it listens. It is killed when the test ends. */
export async function startNode (t: Test, redisUrl: string, keyPrefix: string, nodeName: string): Promise<NodeProcess> {
  const child = tie(fork(fileURLToPath(new URL('cluster-node.ts', import.meta.url)), [redisUrl, keyPrefix, nodeName], { execArgv: ['--import=@tapjs/typescript/import'] }))
  t.teardown(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill('SIGKILL')
    await once(child, 'exit')
  })
  const [url] = await once(child, 'message') as [string]
  return { url, process: child }
}
