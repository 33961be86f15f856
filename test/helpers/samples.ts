import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import Fastify, { type FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import { Agent, EventSource } from 'undici'
import type { TestStream } from '../../lib/testing/index.js'
import { openURL } from './app.js'
import { transpile } from './compiler.js'
import { sampleOf } from './pages.js'
import type { ClientOptions } from './sse.js'

/** What runs a sample, by its name, and looks at what it does. */
export type Drivers = Record<string, (t: Test) => Promise<void>>

/** Runs the sample that the test is named after, with these globals; `edit` prepares its text. Returns what it is asked to export. */
export async function run (t: Test, globals: Record<string, unknown> = {}, exports: string[] = [], edit = (text: string) => text): Promise<Record<string, any>> {
  const sample = sampleOf(t.name)
  const printed: unknown[][] = []
  const given = { ...globals, [`printed-${t.name}`]: (...values: unknown[]) => { printed.push(values) } }
  const before = Object.getOwnPropertyDescriptors(globalThis)
  for (const [name, value] of Object.entries(given)) Object.defineProperty(globalThis, name, { value, configurable: true, writable: true })
  t.teardown(() => {
    for (const name of Object.keys(given)) {
      Reflect.deleteProperty(globalThis, name)
      if (name in before) Object.defineProperty(globalThis, name, before[name as keyof typeof before])
    }
  })
  const text = edit(transpile(sample, exports))
  // Within the repository, so that the sample finds what it imports; beside what the driver may have put there.
  if (!existsSync(t.testdirName)) t.testdir({})
  const file = join(t.testdirName, 'sample.mjs')
  await writeFile(file, `const console = { log: globalThis['printed-${t.name}'] }\n${text}`)
  const module = await import(pathToFileURL(file).href)
  return { ...module, printed }
}

export function at (server: { address (): unknown }): string {
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

export async function visit (t: Test, url: string, options?: ClientOptions): Promise<TestStream> {
  return await openURL(t, url, options)
}

/** An application to which samples add, closed when the test ends. */
export function bare (t: Test): FastifyInstance {
  const app = Fastify()
  t.teardown(() => app.close())
  return app
}

/** The EventSource of undici as a page has it: with paths of this server, and a cookie. Also those that were opened, which the end of the test closes. */
export function eventSourceOf (t: Test, url: string, cookie: string | null = null): { Source: typeof EventSource, sources: EventSource[] } {
  const sources: EventSource[] = []
  t.teardown(() => { for (const source of sources) source.close() })
  const dispatcher = new Agent().compose(dispatch => (options, handler) =>
    dispatch(cookie === null ? options : { ...options, headers: { ...options.headers as Record<string, string>, cookie } }, handler))
  class Source extends EventSource {
    constructor (path: string | URL) {
      super(`${url}${String(path)}`, { node: { dispatcher } })
      sources.push(this)
    }
  }
  return { Source: Source as typeof EventSource, sources }
}
