import t from 'tap'
import { compile } from '../helpers/compiler.js'
import { SAMPLES } from '../helpers/pages.js'
import type { Drivers } from '../helpers/samples.js'
import * as aiChat from './ai-chat.js'
import * as client from './client.js'
import * as clients from './clients.js'
import * as guides from './guides.js'
import * as migration from './migration.js'
import * as operations from './operations.js'
import * as otherOrigin from './other-origin.js'
import * as readme from './readme.js'
import * as recipes from './recipes.js'
import * as sqlite from './sqlite.js'
import * as testing from './testing.js'

// Every sample of every page compiles and runs.

const named = SAMPLES.filter(({ name }) => name !== '')

t.test('samples compile', async t => {
  const typescript = named.filter(({ language }) => language === 'ts')
  // A registered catalogue holds for a whole program.
  const registering = typescript.filter(({ text }) => text.includes('interface Register'))
  const others = typescript.filter(sample => !registering.includes(sample))
  t.ok(others.length > 15)
  for (const sample of registering) t.same(compile([sample]), [])
  for (const options of ['own', 'plain'] as const) t.same(compile(others, options), [], options)
  const [said] = compile([{ language: 'ts', name: 'wrong', text: "import { SSEManager } from 'fastify-sse-manager'\nnew SSEManager({ keepAlive: 'yes' })" }])
  t.match(said, /^wrong\.ts:2: Type '"yes"' is not assignable to type 'boolean/, 'a wrong sample is found')
})

t.test('samples run', async t => {
  const drivers: Drivers = Object.assign({}, ...[readme, guides, client, clients, operations, recipes, aiChat, sqlite, otherOrigin, migration, testing].map(({ DRIVERS }) => DRIVERS))
  t.same(named.map(({ name }) => name).sort(), Object.keys(drivers).sort(), 'each sample is run, and has a name of its own')
  t.same(SAMPLES.filter(({ name }) => name === '').map(({ text }) => text), ["import ssePlugin from 'fastify-sse-manager'                    // ESM\n", "const { ssePlugin } = require('fastify-sse-manager')           // CommonJS\n"], 'but for how to load it, which smoke.cjs and smoke.mjs do')
  for (const { name } of named) await t.test(name, { timeout: 120_000 }, drivers[name]!)
})
