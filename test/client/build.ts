import { readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import * as source from '../../lib/client/index.js'
import { serve } from '../helpers/app.js'
import { buildClient } from '../helpers/client-build.js'
import { until } from '../helpers/wait.js'

const MAX_BYTES = 6 * 1024
const MAX_TABS_BYTES = 4.5 * 1024

t.test('the built client is one file of at most 6 KB, minified and compressed, and that of tabs one of at most 4.5 KB beside it', async t => {
  const path = buildClient(t.testdir())
  const read = async (path: string, maxBytes: number) => {
    const text = await readFile(path, 'utf8')
    const bytes = gzipSync(text, { level: 9 }).length
    t.ok(bytes <= maxBytes, `${bytes} bytes`)
    t.comment(`${text.length} bytes minified, ${bytes} compressed`)
    t.notMatch(text, /node:|process\./)
    return text
  }
  t.notMatch(await read(path, MAX_BYTES), /\bimport\b/)
  const tabs = await read(join(dirname(path), 'tabs.js'), MAX_TABS_BYTES)
  t.same(Array.from(tabs.matchAll(/\bimport\b[^"]*"([^"]*)"/g), ([, from]) => from), ['./index.js'])

  const built: typeof source = await import(pathToFileURL(path).href)
  t.same(Object.keys(built).sort(), Object.keys(source).sort())
  const service = await serve(t)
  const client = built.createClient(`${service.url}/sse?user=ada`)
  t.teardown(() => client.close())
  const seen: unknown[] = []
  client.on('greeting', data => { seen.push(data) })
  await until(() => client.state.name === 'open')
  await service.app.sse.broadcastEvent({ event: 'greeting', data: ['hello'] })
  await until(() => seen.length === 1)
  t.same(seen, [['hello']])
})
