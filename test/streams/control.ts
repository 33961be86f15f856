import t from 'tap'
import { raw, start } from '../helpers/reply.js'
import { until } from '../helpers/wait.js'

// `control: false`: nothing but comments, ids and the items of the source.

t.test('a source without control events', async t => {
  let go = (): void => {}
  const { url, app } = await start(t, app => {
    app.get('/whole', (request, reply) => reply.sse([{ type: 'start' }, { event: 'token', data: 'a', id: '7' }, '[DONE]'], { control: false }))
    app.get('/fails', (request, reply) => reply.sse(async function * () {
      yield 'a'
      await new Promise<void>(resolve => { go = resolve })
      throw new Error('no')
    }, { control: false }))
    app.get('/wrong', (request, reply) => reply.sse(['a'], { control: 1 as never }))
    app.get('/managed', (request, reply) => reply.sse({ control: false } as never))
  })
  const [answer] = await raw(t, url, { path: '/whole' }).waitForAnswers(1)
  t.equal(answer!.body, ': stream keep-alive=15000\n\ndata: {"type":"start"}\n\nid: 7\nevent: token\ndata: a\n\ndata: [DONE]\n\n: end\n\n')

  const failing = raw(t, url, { path: '/fails' })
  await failing.waitFor('data: a')
  go()
  await until(() => failing.closed)
  t.notMatch(failing.bytes.toString(), /sse:|retry|\n0\r\n/, 'the response is not complete')

  const shutting = raw(t, url, { path: '/fails' })
  await shutting.waitFor('data: a')
  for (const connection of app.sse.connections()) connection.close('shutdown')
  await until(() => shutting.closed)
  t.notMatch(shutting.bytes.toString(), /sse:|\n0\r\n/)

  for (const path of ['/wrong', '/managed']) t.match((await app.inject(path)).json(), { code: 'SSE_ERR_INVALID_OPTION', message: /"control"/ }, path)
})
