import t from 'tap'
import { type SSEOptions } from '../../lib/index.js'
import { serve } from '../helpers/app.js'
import { until } from '../helpers/wait.js'

t.test('cross-site: by default the pages of this origin, and what is no page', async t => {
  const rows: [what: string, headers: Record<string, string>, own: boolean, listed: boolean][] = [
    ['no browser', {}, true, true],
    ['a page of this origin', { 'sec-fetch-site': 'same-origin' }, true, true],
    ['the same, POST', { 'sec-fetch-site': 'same-origin', origin: 'http://HOST' }, true, true],
    ['the address bar', { 'sec-fetch-site': 'none' }, true, true],
    ['a page of another site', { 'sec-fetch-site': 'cross-site', origin: 'https://evil.example' }, false, false],
    ['the same, without CORS', { 'sec-fetch-site': 'cross-site' }, false, false],
    ['a page of another subdomain', { 'sec-fetch-site': 'same-site', origin: 'https://blog.example' }, false, false],
    ['the same, without CORS', { 'sec-fetch-site': 'same-site' }, false, false],
    ['a listed page', { 'sec-fetch-site': 'cross-site', origin: 'https://app.example' }, false, true],
    ['a word that does not exist yet', { 'sec-fetch-site': 'same-planet' }, false, false],
    ['older browser, own page', { origin: 'http://HOST' }, true, true],
    ['older browser, own page, TLS ends at a proxy', { origin: 'https://app.example', host: 'app.example' }, true, true],
    ['the same with the port written out', { origin: 'https://own.example', host: 'own.example:443' }, true, true],
    ['the same in capitals', { origin: 'https://own.example', host: 'OWN.example' }, true, true],
    ['another port is another origin', { origin: 'https://own.example:8443', host: 'own.example' }, false, false],
    ['older browser, another page', { origin: 'https://evil.example' }, false, false],
    ['a name that ends alike', { origin: 'https://own.example.evil.example', host: 'own.example' }, false, false],
    ['a sandboxed frame', { origin: 'null' }, false, false],
    ['no origin at all', { origin: 'HOST' }, false, false],
    ['a stranger\'s word for the host', { origin: 'https://evil.example', 'x-forwarded-host': 'evil.example' }, false, false],
    ['with two words for one', { 'sec-fetch-site': 'same-origin, cross-site' }, false, false]
  ]
  for (const [name, allowedOrigins] of [['default', undefined], ['listed', ['https://app.example']], ['all', '*']] as const) {
    await t.test(name, async t => {
      let asked = 0
      const service = await serve(t, {
        ...(allowedOrigins !== undefined && { allowedOrigins }) as SSEOptions,
        maxConnections: 1,
        authHandler: () => {
          asked++
          return null
        }
      })
      const { app, url, open } = service
      for (const [what, headers, own, listed] of rows) {
        asked = 0
        const filled = Object.fromEntries(Object.entries(headers).map(([key, value]) => [key, value.replace('HOST', new URL(url).host)]))
        const stream = await open('/sse', { headers: filled })
        const allowed = name === 'all' || (name === 'listed' ? listed : own)
        t.strictSame([stream.status, asked], allowed ? [200, 1] : [403, 0], what)
        if (!allowed) t.equal(stream.body.code, 'SSE_ERR_ORIGIN_FORBIDDEN')
        await stream.close()
        await until(() => app.sse.connectionCount === 0)
      }
    })
  }

  await t.test('behind a proxy that says what was asked, when it is trusted', async t => {
    const headers = { origin: 'https://own.example', 'x-forwarded-host': 'own.example', 'x-forwarded-proto': 'https' }
    for (const [trustProxy, status] of [[true, 200], [false, 403]] as const) {
      const { open } = await serve(t, {}, { trustProxy })
      t.equal((await open('/sse', { headers })).status, status)
    }
  })
})
