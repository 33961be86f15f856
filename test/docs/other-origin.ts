import { at, run, visit, type Drivers } from '../helpers/samples.js'

/** Of the sample in docs/recipes/other-origin.md. */
export const DRIVERS: Drivers = {
  async 'other-origin' (t) {
    const session = { userId: 'user123', expiresAt: Date.now() + 60_000, role: 'guest' }
    const { app } = await run(t, { findSession: async (id: string | undefined) => id === 'abc' ? session : null }, ['app'])
    t.teardown(() => app.close())
    const url = `${at(app.server)}/sse`
    const listed = { origin: 'http://localhost:5173', 'sec-fetch-site': 'same-site' }
    const signedIn = { ...listed, cookie: 'session=abc' }
    const readable = { 'access-control-allow-origin': 'http://localhost:5173', 'access-control-allow-credentials': 'true' }

    const stream = await visit(t, url, { headers: { accept: 'text/event-stream', ...signedIn } })
    t.ok(stream.isStream)
    t.match(stream.headers, readable, 'the page may read it')
    await app.sse.broadcastData('greeting', 1, { subscriptionIds: ['user:user123:greetings'] })
    await stream.until(() => stream.named('data').length >= 1)

    const withoutCookie = await visit(t, url, { headers: listed })
    t.equal(withoutCookie.status, 401)
    t.match(withoutCookie.headers, readable, 'the page may read the refusal')

    const other = await visit(t, url, { headers: { ...signedIn, origin: 'http://localhost:4000' } })
    t.equal(other.status, 403)
    t.equal(other.body.code, 'SSE_ERR_ORIGIN_FORBIDDEN')
    t.notOk('access-control-allow-origin' in other.headers)

    const preflight = await visit(t, url, { method: 'OPTIONS', headers: { ...listed, 'access-control-request-method': 'GET', 'access-control-request-headers': 'authorization' } })
    t.equal(preflight.status, 204)
    t.match(preflight.headers, { ...readable, 'access-control-allow-headers': 'authorization' })

    const proxied = await visit(t, url, { headers: { host: 'localhost:5173', 'sec-fetch-site': 'same-origin', cookie: 'session=abc' } })
    t.ok(proxied.isStream, 'a dev server that forwards the request of its own page')
  }
}
