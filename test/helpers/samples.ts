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
import { setGlobals } from './globals.js'
import { sampleOf } from './pages.js'
import type { ClientOptions } from './sse.js'

/** What runs a sample, by its name, and looks at what it does. */
export type Drivers = Record<string, (t: Test) => Promise<void>>

let runs = 0

/** Runs the sample that the test is named after, or another, with these globals; `edit` prepares its text. Returns what it is asked to export. */
export async function run (t: Test, globals: Record<string, unknown> = {}, exports: string[] = [], edit = (text: string) => text, name = t.name): Promise<Record<string, any>> {
  const sample = sampleOf(name)
  const printed: unknown[][] = []
  const given = { ...globals, [`printed-${name}`]: (...values: unknown[]) => { printed.push(values) } }
  setGlobals(t, given)
  const text = edit(transpile(sample, exports))
  // Within the repository, so that the sample finds what it imports; beside what the driver may have put there.
  if (!existsSync(t.testdirName)) t.testdir({})
  const file = join(t.testdirName, `${name}.mjs`)
  await writeFile(file, `const console = { log: globalThis['printed-${name}'] }\n${text}`)
  // A sample can run several times in one test, as the nodes of an application do.
  const module = await import(`${pathToFileURL(file).href}?${++runs}`)
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
