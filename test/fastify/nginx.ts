import Fastify from 'fastify'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import 'reflect-metadata'
import t from 'tap'
import ssePlugin from '../../lib/index.js'
import { tie } from '../../lib/testing/tie.js'
import { freePort } from '../../lib/testing/free-port.js'
import { until } from '../helpers/wait.js'
import { openURL, payloads } from '../helpers/app.js'

// The plugins, the framework and the proxy that stand beside this one in a real application.

declare module 'fastify' {
  interface Session { user?: string, visits?: number }
}

// --- nginx ---

const NGINX = ['nginx', '/usr/sbin/nginx'].find(path => spawnSync(path, ['-v']).error === undefined)
const withoutNginx = NGINX === undefined && process.env['CI'] === undefined && 'nginx is not installed'

t.test('nginx with its buffers, its cache and gzip on', { skip: withoutNginx }, async t => {
  const { app, url } = await (async () => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(ssePlugin, { authHandler: ({ query }) => query['user'] as string ?? null, keepAliveIntervalMs: 100, retryMs: 100, drainMs: 300 })
    app.get('/sse', { sse: true }, async (request, reply) => { await reply.sse({ subscriptions: ['news'] }) })
    await app.listen({ host: '127.0.0.1', port: 0 })
    return { app, url: `http://127.0.0.1:${(app.server.address() as AddressInfo).port}` }
  })()
  const port = await freePort()
  const directory = await mkdtemp(join(tmpdir(), 'nginx-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  await mkdir(join(directory, 'cache'))
  const config = join(directory, 'nginx.conf')
  // As Debian ships it, and what an operator adds in good faith.
  await writeFile(config, `
    daemon off; master_process off; pid ${directory}/nginx.pid; error_log ${directory}/error.log;
    events { worker_connections 256; }
    http {
      access_log off;
      client_body_temp_path ${directory}/body; proxy_temp_path ${directory}/proxy;
      fastcgi_temp_path ${directory}/fastcgi; uwsgi_temp_path ${directory}/uwsgi; scgi_temp_path ${directory}/scgi;
      gzip on; gzip_proxied any; gzip_min_length 0; gzip_types text/event-stream text/plain;
      proxy_cache_path ${directory}/cache keys_zone=all:1m;
      server {
        listen 127.0.0.1:${port};
        location / { proxy_pass ${url}; proxy_cache all; proxy_cache_valid any 1m; proxy_http_version 1.1; proxy_set_header Connection ""; }
      }
    }`)
  const nginx = tie(spawn(NGINX!, ['-p', directory, '-e', `${directory}/error.log`, '-c', config], { stdio: 'inherit' }))
  const exited = once(nginx, 'exit')
  t.teardown(async () => {
    nginx.kill('SIGKILL')
    await exited
  })
  const proxy = `http://127.0.0.1:${port}`
  await until(async () => await fetch(`${proxy}/nothing`).then(response => response.status === 404, () => false), 30_000, 'nginx to answer')

  const headers = {}
  const ada = await openURL(t, `${proxy}/sse?user=ada`, { headers })
  t.equal(ada.headers['content-type'], 'text/event-stream')
  await app.sse.broadcastToUsers({ data: 'for ada' }, ['ada'])
  await ada.next('message')
  // The same address for somebody else, and again for the same: the cache has kept nothing.
  const bob = await openURL(t, `${proxy}/sse?user=ada&x=1`, { headers })
  const again = await openURL(t, `${proxy}/sse?user=ada`, { headers })
  t.teardown(() => { bob.close(); again.close() })
  for (const stream of [bob, again]) t.strictSame(stream.named('message'), [], 'nothing of another stream')
  await app.sse.broadcastEvent({ data: 'live' })
  await Promise.all([ada, bob, again].map(stream => until(() => stream.named('message').some(({ data }) => data === 'live'))))
  // Keep-alives come through one by one, and so does the leaving of a client.
  await until(() => ada.comments.filter(comment => comment === 'keep-alive').length >= 2)
  // Compressed by nginx, against no-transform: every event still comes at once.
  const abort = new AbortController()
  const compressed = await fetch(`${proxy}/sse?user=zip`, { headers: { 'accept-encoding': 'gzip' }, signal: abort.signal })
  t.comment(`content-encoding: ${compressed.headers.get('content-encoding') ?? 'none'}`)
  await app.sse.broadcastToUsers({ data: 'zipped' }, ['zip'])
  let text = ''
  for await (const piece of compressed.body!) {
    text += Buffer.from(piece).toString()
    if (text.includes('data: zipped')) break
  }
  t.match(text, 'data: zipped')
  abort.abort()
  const place = again.lastEventId
  await again.close()
  await until(() => app.sse.connectionCount === 2)
  await app.sse.broadcastEvent({ data: 'while away' })
  const back = await openURL(t, `${proxy}/sse?user=ada`, { headers: { ...headers, 'last-event-id': place } })
  await back.next('message')
  t.strictSame(back.named('message').map(({ data }) => data), ['while away'])
  await app.close()
  await back.ended
  t.equal(payloads(back, 'sse:close')[0].reason, 'shutdown')
})
