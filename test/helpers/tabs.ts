import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { WebSocket } from 'undici'
import { tie } from '../../lib/testing/tie.js'
import { CHROMIUM } from './browser.js'
import { until } from './wait.js'

type Call = (method: string, params?: object, sessionId?: string) => Promise<any>

/** A tab of a browser. */
export interface Tab {
  /** Returns the value of an expression in the page. */
  evaluate (expression: string): Promise<any>
  /** Makes it the tab that the user sees. */
  show (): Promise<void>
  /** Calls a method of the DevTools protocol. */
  call (method: string, params?: object): Promise<any>
  close (): Promise<void>
}

/**
 * A Chromium whose tabs hide each other, driven by the DevTools protocol. Pages of Playwright are always visible: it emulates the focus
 * of each. Returns a function that opens a tab in front of the others.
 */
export async function browseTabs (t: Test): Promise<(url: string) => Promise<Tab>> {
  const directory = mkdtempSync(join(tmpdir(), 'sse-chromium-'))
  const process = tie(spawn(CHROMIUM, ['--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--remote-debugging-port=0', `--user-data-dir=${directory}`, 'about:blank'], { stdio: ['ignore', 'ignore', 'pipe'] }))
  const exit = new Promise(resolve => process.once('exit', resolve))
  t.teardown(async () => {
    process.kill()
    await exit
    // The processes of its tabs end a little later, and write until then: what they write meanwhile makes a removal fail, whose own
    // retries do not look for new files.
    await until(() => removed(directory), 30_000, `${directory} is removed`)
  })
  const address = await new Promise<string>((resolve, reject) => {
    let text = ''
    process.stderr.setEncoding('utf8').on('data', part => {
      const [found] = /ws:\S+/.exec(text += part) ?? []
      if (found !== undefined) resolve(found)
    })
    process.once('exit', () => reject(new Error(`Chromium has ended: ${text}`)))
  })
  const call = await connect(address)
  return async url => {
    const { targetId } = await call('Target.createTarget', { url })
    const { sessionId } = await call('Target.attachToTarget', { targetId, flatten: true })
    return {
      evaluate: async expression => (await call('Runtime.evaluate', { expression, returnByValue: true }, sessionId)).result.value,
      show: async () => { await call('Target.activateTarget', { targetId }) },
      call: (method, params) => call(method, params, sessionId),
      close: async () => { await call('Target.closeTarget', { targetId }) }
    }
  }
}

function removed (directory: string): boolean {
  try {
    rmSync(directory, { recursive: true, force: true })
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOTEMPTY') throw error
    return false
  }
}

async function connect (address: string): Promise<Call> {
  const socket = new WebSocket(address)
  const pending = new Map<number, { resolve (value: unknown): void, reject (error: Error): void }>()
  socket.addEventListener('message', ({ data }) => {
    const { id, result, error } = JSON.parse(data)
    if (error === undefined) pending.get(id)?.resolve(result)
    else pending.get(id)?.reject(new Error(error.message))
    pending.delete(id)
  })
  await new Promise(resolve => socket.addEventListener('open', resolve))
  let id = 0
  return (method, params = {}, sessionId) => new Promise((resolve, reject) => {
    pending.set(++id, { resolve, reject })
    socket.send(JSON.stringify({ id, method, params, sessionId }))
  })
}
