import { randomUUID } from 'node:crypto'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { AbstractChat, DefaultChatTransport, type ChatInit, type ChatState, type ChatStatus, type UIMessage } from 'ai'
import { MockLanguageModelV3 } from 'ai/test'
import type { FastifyInstance } from 'fastify'
import type { Page } from 'playwright-core'
import type { Test } from 'tap'
import ssePlugin, { type RunStatus } from '../../lib/index.js'
import { forceGap, testClock, type TestStream } from '../../lib/testing/index.js'
import { listen } from '../helpers/app.js'
import { browse } from '../helpers/browser.js'
import { Gate } from '../helpers/gate.js'
import { fenceIn, linesOf, sampleOf } from '../helpers/pages.js'
import { RedisServer, withoutRedis } from '../helpers/redis.js'
import { Hand } from '../helpers/runs.js'
import { at, bare, run, visit, type Drivers } from '../helpers/samples.js'
import { until } from '../helpers/wait.js'

// --- The AI SDK ---

type StreamPart = Awaited<ReturnType<MockLanguageModelV3['doStream']>>['stream'] extends ReadableStream<infer Part> ? Part : never

/** An answer of the model that the test writes, token by token. */
class Answer {
  readonly prompt: string
  readonly stream: ReadableStream<StreamPart>
  isAborted = false
  #controller!: ReadableStreamDefaultController<StreamPart>

  constructor (prompt: unknown, signal: AbortSignal | undefined) {
    this.prompt = JSON.stringify(prompt)
    this.stream = new ReadableStream({ start: controller => { this.#controller = controller } })
    this.#controller.enqueue({ type: 'stream-start', warnings: [] })
    this.#controller.enqueue({ type: 'text-start', id: '0' })
    signal?.addEventListener('abort', () => {
      this.isAborted = true
      this.#controller.error(signal.reason)
    })
  }

  say (token: string): void {
    this.#controller.enqueue({ type: 'text-delta', id: '0', delta: token })
  }

  /** As a provider reports that it cannot continue. */
  fail (): void {
    this.#controller.enqueue({ type: 'error', error: new Error('overloaded') })
    this.#controller.close()
  }

  end (): void {
    this.#controller.enqueue({ type: 'text-end', id: '0' })
    this.#controller.enqueue({
      type: 'finish',
      finishReason: { unified: 'stop', raw: undefined },
      usage: { inputTokens: { total: 1, noCache: 1, cacheRead: 0, cacheWrite: 0 }, outputTokens: { total: 1, text: 1, reasoning: 0 } }
    })
    this.#controller.close()
  }
}

class State implements ChatState<UIMessage> {
  status: ChatStatus = 'ready'
  error: Error | undefined
  messages: UIMessage[]

  constructor (messages: UIMessage[]) {
    this.messages = messages
  }

  pushMessage = (message: UIMessage): void => { this.messages = [...this.messages, message] }
  popMessage = (): void => { this.messages = this.messages.slice(0, -1) }
  replaceMessage = (index: number, message: UIMessage): void => { this.messages = this.messages.with(index, structuredClone(message)) }
  snapshot = <T>(value: T): T => structuredClone(value)
}

type ChatOptions = ChatInit<UIMessage> & { messages: UIMessage[], resume: boolean }

/** What `useChat()` is made of, without React: it resumes when it is made, and reports its status. */
class Tab extends AbstractChat<UIMessage> {
  constructor ({ resume, messages, ...options }: ChatOptions) {
    super({ ...options, state: new State(messages) })
    if (resume) this.resumeStream()
  }

  /** The text of the last message. */
  get text (): string {
    return this.lastMessage?.parts.map(part => part.type === 'text' ? part.text : '').join('') ?? ''
  }

  async shows (t: Test, text: string, status: ChatStatus): Promise<void> {
    await until(() => this.text === text && this.status === status, undefined, `"${text}", ${status}; has "${this.text}", ${this.status}, ${this.error?.stack}`)
    t.pass(`shows "${text}", ${status}`)
  }
}

interface ChatApplication {
  app: FastifyInstance
  url: string
  /** The chats, by user and id. */
  chats: Map<string, UIMessage[]>
  /** The answers that the model was asked for. */
  answers: Answer[]
  /** Waits for the next answer. */
  answer (): Promise<Answer>
}

async function startChat (t: Test): Promise<ChatApplication> {
  const app = bare(t)
  await app.register(ssePlugin, { requireAuthentication: true, authHandler: ({ headers }) => headers['x-user'] as string ?? null })
  const chats = new Map<string, UIMessage[]>()
  const answers: Answer[] = []
  await run(t, {
    app,
    languageModel: new MockLanguageModelV3({
      doStream: async ({ prompt, abortSignal }) => {
        const answer = new Answer(prompt, abortSignal)
        answers.push(answer)
        return answer
      }
    }),
    loadChat: async (id: string, user: string) => structuredClone(chats.get(`${user} ${id}`) ?? []),
    saveChat: async (id: string, user: string, messages: UIMessage[]) => { chats.set(`${user} ${id}`, structuredClone(messages)) }
  }, [], undefined, 'ai-chat-sdk')
  let taken = 0
  return {
    app,
    url: await listen(app),
    chats,
    answers,
    answer: async () => {
      await until(() => answers.length > taken)
      return answers[taken++]!
    }
  }
}

const question = (id: string, text: string): UIMessage => ({ id, role: 'user', parts: [{ type: 'text', text }] })

interface Question { id: string, text: string, answer: string, status: RunStatus }

/** A model whose answers a test lets go on, token by token. */
function handModel () {
  const hands: { prompt: string, hand: Hand }[] = []
  return {
    hands,
    model: {
      stream (prompt: string, { signal }: { signal: AbortSignal }) {
        const hand = new Hand()
        hands.push({ prompt, hand })
        return hand.factory({ signal }) as AsyncIterable<string>
      }
    }
  }
}

/** Starts the sample with users on two nodes, which share a Redis. Null without Redis. */
async function startNodes (t: Test, html = '') {
  if (withoutRedis !== false) {
    t.comment(withoutRedis)
    return null
  }
  const redis = await RedisServer.start()
  t.teardown(() => redis.stop())
  t.testdir({ 'chat.html': html })
  const { model, hands } = handModel()
  const findSession = async (id: string | undefined) => id === undefined ? null : { userId: id, expiresAt: Date.now() + 60_000, role: 'user' }
  const start = async () => {
    const { app } = await run(t, { model, findSession }, ['app'], text => text
      .replace('process.env.REDIS_URL', JSON.stringify(redis.url))
      .replace('Number(process.env.PORT ?? 3000)', "0, host: '127.0.0.1'")
      .replace('requireAuthentication', 'runs: { drainMs: 0 }, requireAuthentication'), 'ai-chat-users') as { app: FastifyInstance }
    t.teardown(() => app.close())
    return app
  }
  const [one, two] = [await start(), await start()]
  return { apps: [one, two] as const, urls: [at(one.server), at(two.server)] as const, hands, of: (user: string) => ({ headers: { cookie: `session=${user}` } }) }
}

/** Of the samples in docs/recipes/ai-chat.md and ai-chat-sdk.md. */
export const DRIVERS: Drivers = {
  async 'ai-chat' (t) {
    const html = fenceIn('docs/recipes/ai-chat.md', 'html')
    t.ok(linesOf(sampleOf(t.name).text) <= 30, 'a short server')
    t.ok(linesOf(html) <= 20, 'a short page')
    /** So many words can pass; then the model fails, if it is to. */
    const pace = { permits: 0, isBroken: false }
    const pass = async (word: string, { signal }: { signal: AbortSignal }): Promise<string> => {
      while (pace.permits === 0) {
        if (pace.isBroken) throw new Error('the model fails')
        await sleep(5, null, { signal })
      }
      pace.permits--
      return word
    }
    const gate = new Gate()
    const clock = testClock()
    /** Starts a server with these questions, in the directory of a test. It lasts as long as the browser. */
    const start = async (own: Test, port = 0, stored: readonly Question[] = []) => {
      own.testdir({ 'chat.html': html })
      const { app, questions } = await run(own, { pass, gate: gate.hook, options: { retryMs: 100, ...clock.options } }, ['app', 'questions'], text => text
        .replace('sleep(100, ', 'pass(')
        .replace('const app = fastify();', "$& app.addHook('onRequest', gate);")
        .replace('register(ssePlugin)', 'register(ssePlugin, options)')
        .replace('new Map()', `new Map(${JSON.stringify(stored.map(question => [question.id, question]))})`)
        .replace('port: 0', `port: ${port}`)
        .replace("ifFinished: 'join'", '$&, ttlMs: 5_000'), 'ai-chat') as { app: FastifyInstance, questions: Map<string, Question> }
      t.teardown(() => app.close())
      return { app, questions }
    }
    const { app, questions } = await start(t)
    const url = at(app.server)

    const id = randomUUID()
    const putTo = (id: string, payload = 'tea') => app.inject({ method: 'PUT', url: `/questions/${id}`, headers: { 'content-type': 'text/plain' }, payload })
    const put = async () => (await putTo(id)).json()
    for (const [id, text] of [['ask', 'tea'], ['..', 'tea'], [randomUUID(), ''], [randomUUID(), ' \n'], [randomUUID(), 'x'.repeat(10_001)]] as const) t.equal((await putTo(encodeURIComponent(id), text)).statusCode >= 400, true, `${id}, ${text.length}`)
    t.equal(questions.size, 0)
    const list = await visit(t, `${url}/chat`)
    t.same(await put(), { started: true })
    const stream = await visit(t, `${url}/answers/${id}`)
    pace.permits = 2
    t.same((await stream.collect(2)).map(({ data }) => data), ['You ', 'asked: '])
    t.same(await put(), { started: false }, 'a request that is repeated')
    t.same((await app.inject({ method: 'DELETE', url: `/answers/${id}` })).json(), { stopped: true })
    await stream.ended
    t.match(stream.named('sse:end').map(({ json }) => json), [{ status: 'stopped', events: 2 }])
    await until(() => questions.get(id)!.status === 'stopped')
    t.equal(questions.get(id)!.answer, 'You asked: ')
    t.same(await put(), { started: false }, 'a request that is repeated later')
    t.equal(questions.get(id)!.answer, 'You asked: ')
    t.equal((await visit(t, `${url}/answers/none`)).status, 204)

    // The run exists when a client learns of it.
    const broadcast = app.sse.broadcastEvent
    const seen: unknown[] = []
    app.sse.broadcastEvent = async function (...args) {
      const [{ id, status }] = (args[0] as unknown as { data: [Question] }).data
      if (status === 'running') seen.push((await app.sse.getRun(id, { ownerId: null }))?.status)
      return await broadcast.apply(app.sse, args)
    }
    const short = randomUUID()
    pace.permits = Infinity
    t.equal((await putTo(short)).statusCode, 200)
    await list.until(() => list.named('questions').some(({ json }) => (json as Question[]).some(({ id, status }) => id === short && status === 'done')))
    t.equal(seen.length, 1)
    t.not(seen[0], undefined, 'published after the start')
    app.sse.broadcastEvent = broadcast
    pace.permits = 0
    questions.delete(short)

    const page = await browse(t, url)
    if (page === null) return
    const other = await page.context().browser()!.newPage()
    await other.goto(url)
    const shows = async (page: Page, text: string, state?: string) => {
      const row = page.locator('body > div > div').last()
      const isShown = async () => await row.locator('p').textContent() === text && (state === undefined || await row.locator('i').textContent() === state)
      t.ok(await until(isShown, undefined, `${text}: ${state}`), `${text}: ${state}`)
    }
    const bothShow = (text: string, state?: string) => Promise.all([page, other].map(tab => shows(tab, text, state)))
    const ask = async (text: string, tabs = [page, other]) => {
      await page.fill('input', text)
      await page.press('input', 'Enter')
      for (const tab of tabs) await tab.locator('b', { hasText: text }).waitFor()
      t.ok(await until(async () => await page.inputValue('input') === ''), 'the field is cleared')
    }
    const says = (text: string) => until(async () => await page.locator('output').textContent() === text, undefined, text)
    await bothShow('You asked: ', 'stopped')
    t.ok(await says(''), 'live')
    await page.press('input', 'Enter')
    t.equal(questions.size, 1, 'an empty question is not sent')
    await page.fill('input', ' ')
    await page.click('form button')
    t.ok(await says('Refused: 400'))
    t.equal(await page.inputValue('input'), ' ', 'a question that was refused stays')

    await ask('milk')
    pace.permits = 3
    await bothShow('You asked: milk ', 'Stop')
    await page.reload()
    await bothShow('You asked: milk ', 'Stop')
    pace.permits = 2
    await bothShow('You asked: milk You asked: ', 'Stop')
    await other.getByRole('button', { name: 'Stop' }).click()
    await bothShow('You asked: milk You asked: ', 'stopped')
    await until(() => [...questions.values()].every(({ status }) => status === 'stopped'))
    await page.reload()
    await bothShow('You asked: milk You asked: ', 'stopped')

    await ask('<b>')
    pace.permits = 4
    await bothShow('You asked: <b> You ', 'Stop')
    pace.permits = Infinity
    await bothShow('You asked: <b> '.repeat(20), 'done')
    t.same([...questions.values()].map(({ answer, status }) => [answer, status]), [['You asked: ', 'stopped'], ['You asked: milk You asked: ', 'stopped'], ['You asked: <b> '.repeat(20), 'done']])

    pace.permits = 0
    await ask('gin')
    pace.permits = 3
    await bothShow('You asked: gin ', 'Stop')
    pace.isBroken = true
    await bothShow('You asked: gin ', 'failed')
    await until(() => [...questions.values()].at(-1)!.status === 'failed')
    pace.isBroken = false
    await page.reload()
    await bothShow('You asked: gin ', 'failed')

    // The tabs are away until the run is not kept any more, and in the second case neither are the events.
    for (const [text, lose] of [['rum', async () => {}], ['jam', () => forceGap(app)]] as const) {
      pace.permits = 0
      await ask(text)
      pace.permits = 3
      await bothShow(`You asked: ${text} `)
      const id = [...questions.keys()].at(-1)!
      await gate.away(app, async () => {
        pace.permits = Infinity
        await (await app.sse.getRun(id, { ownerId: null }))!.finished
        await clock.advance(5_001)
        t.equal(await app.sse.getRun(id, { ownerId: null }), null)
        await lose()
      })
      await bothShow(`You asked: ${text} `.repeat(20), 'done')
    }

    pace.permits = 0
    await ask('ham')
    pace.permits = 3
    await bothShow('You asked: ham ', 'Stop')
    await app.sse.broadcastEvent({ event: 'questions', data: [{ ...[...questions.values()].at(-1)!, answer: 'all', status: 'done' }] }, { subscriptionIds: ['chat'] })
    await bothShow('all', 'done')
    t.same((await app.inject({ method: 'DELETE', url: `/answers/${[...questions.keys()].at(-1)!}` })).json(), { stopped: true })
    t.ok(await until(() => app.sse.connectionCount === 2), 'nothing is appended to a whole answer: the streams of the run are closed')

    questions.set('killed', { id: 'killed', text: 'rye', answer: '', status: 'running' })
    await page.reload()
    await shows(page, '', 'interrupted')
    questions.delete('killed')

    await other.close()
    await page.reload()
    let server = { app, questions }
    const kill = async ({ app, questions }: typeof server) => {
      app.server.close()
      app.server.closeAllConnections()
      for (const id of questions.keys()) await app.sse.stopRun(id, { ownerId: null })
    }
    for (const [text, isStored] of [['oat', true], ['soy', false]] as const) {
      await t.test(`the server is killed, ${isStored ? 'with a database' : 'with the Map of the sample'}: the page keeps its text`, async t => {
        await ask(text, [page])
        pace.permits = 3
        await shows(page, `You asked: ${text} `, 'Stop')
        const { port } = server.app.server.address() as AddressInfo
        const stored = isStored ? structuredClone([...server.questions.values()]) : []
        await kill(server)
        server = await start(t, port, stored)
        await shows(page, `You asked: ${text} `, 'interrupted')
        await until(() => server.app.sse.connectionCount === 1, undefined, 'the list only')
        await shows(page, `You asked: ${text} `, 'interrupted')
      })
    }
    await kill(server)
    await page.fill('input', 'tea')
    // The next attempt of the list to connect replaces the message.
    t.ok(await until(async () => {
      await page.click('form button')
      return /fetch/.test(await page.locator('output').textContent() ?? '')
    }), 'the page says that nothing was asked')
    await page.route('**/chat', route => route.fulfill({ status: 503 }))
    server = await start(t, Number(new URL(page.url()).port))
    t.ok(await says('Not live: reload the page'), 'a list that is refused')
  },

  async 'ai-chat-users' (t) {
    const nodes = await startNodes(t)
    if (nodes === null) return
    const { apps: [one, two], urls: [url, other], hands, of } = nodes
    const call = async (app: FastifyInstance, method: 'PUT' | 'DELETE' | 'POST', path: string, user?: string, payload?: string) => {
      const { statusCode, body } = await app.inject({ method, url: path, headers: { ...(user !== undefined && of(user).headers), ...(payload !== undefined && { 'content-type': 'text/plain' }) }, ...(payload !== undefined && { payload }) })
      return statusCode === 200 ? JSON.parse(body) : statusCode
    }
    const [id, later] = [randomUUID(), randomUUID()]
    for (const path of ['/chat', `/answers/${id}`]) t.equal((await visit(t, url + path)).status, 401)
    t.same([await call(one, 'PUT', `/questions/${id}`, undefined, 'Tea?'), await call(one, 'POST', `/questions/${id}/continue`, undefined, ''), await call(one, 'DELETE', `/answers/${id}`)], [401, 401, 401])
    t.same([await call(one, 'PUT', `/questions/${id}`, 'ada', ' '), await call(one, 'PUT', '/questions/ask', 'ada', 'Tea?')], [400, 400])
    t.equal(await call(one, 'POST', `/questions/${id}/continue`, 'ada', 'Tea'), 409, 'no such question')
    t.equal((await fetch(`${url}/health`)).status, 200)

    const [ada, eve] = [await visit(t, `${other}/chat`, of('ada')), await visit(t, `${url}/chat`, of('eve'))]
    t.same(await call(one, 'PUT', `/questions/${id}`, 'ada', 'Tea?'), { started: true })
    t.same(await call(two, 'PUT', `/questions/${id}`, 'ada', 'Tea?'), { started: false }, 'a request that is repeated')
    t.equal((await visit(t, `${other}/answers/${id}`, of('eve'))).status, 204)
    t.same(await call(two, 'DELETE', `/answers/${id}`, 'eve'), { stopped: false })
    t.same(await call(two, 'PUT', `/questions/${id}`, 'eve', 'Tea?'), { started: true }, 'the same id, of another user')
    await ada.until(() => ada.named('questions').length >= 2)
    const answer = await visit(t, `${other}/answers/${id}`, of('ada'))
    t.equal(answer.status, 200, 'on another node')
    await until(() => hands.length === 2)
    hands[0]!.hand.yield('Yes')
    hands[0]!.hand.end()
    await answer.ended
    t.same(answer.events[0]!.data, 'Yes')
    t.same(await call(one, 'DELETE', `/answers/${id}`, 'eve'), { stopped: true })
    const states = (stream: TestStream) => stream.named('questions').map(({ json }) => (json as Question[]).map(({ answer, status }) => [answer, status]).flat())
    for (const [stream, end] of [[ada, ['Yes', 'done']], [eve, ['', 'stopped']]] as const) {
      await stream.until(() => states(stream).at(-1)?.[1] === end[1])
      t.same(states(stream).at(-1), end, 'each user has a list')
    }
    t.equal(await call(one, 'POST', `/questions/${id}/continue`, 'ada', 'Yes'), 409, 'a complete answer')

    t.same(await call(two, 'PUT', `/questions/${later}`, 'ada', 'Milk?'), { started: true })
    t.same(await call(one, 'POST', `/questions/${later}/continue`, 'ada', 'Mi'), { started: false }, 'a running answer is joined')
    const list = await visit(t, `${url}/chat`, of('ada'))
    t.match((await list.next('questions')).json, [{ id, text: 'Tea?', answer: 'Yes', status: 'done' }, { id: later, text: 'Milk?' }], 'in the order in which they were asked')
  },

  async 'ai-chat-continue' (t) {
    const html = fenceIn('docs/recipes/ai-chat.md', 'html').replace(/(const end = .*output\.textContent = text)/, (line: string) => `${line}; ${sampleOf(t.name).text.trim()}`)
    const nodes = await startNodes(t, html)
    if (nodes === null) return
    const { apps: [one], urls: [, url], hands, of } = nodes
    const page = await browse(t, url)
    if (page === null) return
    await page.context().addCookies([{ name: 'session', value: 'ada', url }])
    await page.reload()
    const shows = async (text: string, state: string) => {
      const row = page.locator('body > div > div').last()
      t.ok(await until(async () => await row.count() === 1 && await row.locator('p').textContent() === text && await row.locator('i').textContent() === state, undefined, `${text}: ${state}`), `${text}: ${state}`)
    }
    const id = randomUUID()
    await one.inject({ method: 'PUT', url: `/questions/${id}`, headers: { ...of('ada').headers, 'content-type': 'text/plain' }, payload: 'Tea?' })
    await until(() => hands.length === 1)
    hands[0]!.hand.yield('Tea is')
    await shows('Tea is', 'Stop')
    await one.close()
    await shows('Tea is', 'lost Continue')
    await page.getByRole('button', { name: 'Continue' }).click()
    await until(() => hands.length === 2)
    t.match(hands[1]!.prompt, /Tea\?.*Continue this answer: Tea is/s)
    await shows('Tea is', 'Stop')
    hands[1]!.hand.yield(' good')
    hands[1]!.hand.end()
    await shows('Tea is good', 'done')
    await page.reload()
    await shows('Tea is good', 'done')

    // An answer without a word.
    await page.fill('input', 'Milk?')
    await page.click('form button')
    await shows('', 'Stop')
    await page.getByRole('button', { name: 'Stop' }).click()
    await shows('', 'stopped Continue')
    await page.getByRole('button', { name: 'Continue' }).click()
    await until(() => hands.length === 4)
    t.equal(hands[3]!.prompt, 'Milk?')
    hands[3]!.hand.yield('Yes')
    hands[3]!.hand.end()
    await shows('Yes', 'done')
  },

  async 'ai-chat-text' (t) {
    const answers: Answer[] = []
    const languageModel = new MockLanguageModelV3({ doStream: async ({ prompt, abortSignal }) => answers[answers.push(new Answer(prompt, abortSignal)) - 1]! })
    const { tokensOf } = await run(t, { languageModel }) as { tokensOf (prompt: string, signal: AbortSignal): AsyncGenerator<string> }
    const { signal } = new AbortController()
    const whole = tokensOf('Tea?', signal)
    const first = whole.next()
    await until(() => answers.length === 1)
    answers[0]!.say('Yes')
    t.same(await first, { done: false, value: 'Yes' })
    answers[0]!.end()
    t.same(await whole.next(), { done: true, value: undefined })

    const broken = tokensOf('Milk?', signal)
    const begun = broken.next()
    await until(() => answers.length === 2)
    answers[1]!.say('N')
    answers[1]!.fail()
    t.same(await begun, { done: false, value: 'N' })
    await t.rejects(broken.next(), { message: 'overloaded' })
  },

  async 'ai-chat-sdk' (t) {
    const { url, chats, answers, answer } = await startChat(t)
    const user = (name: string) => ({ headers: { 'x-user': name } })
    const post = (name: string, id = 'q') => visit(t, `${url}/api/chat`, { method: 'POST', headers: { 'x-user': name, 'content-type': 'application/json' }, body: JSON.stringify({ id: 'c', message: question(id, 'Tea?') }) })
    t.equal((await visit(t, `${url}/api/chat/c/stream`)).status, 401)
    t.equal((await visit(t, `${url}/api/chat/c/stream`, user('ada'))).status, 204, 'no question')

    const first = await post('ada')
    const streams = [first, await post('ada'), await visit(t, `${url}/api/chat/c/stream`, user('ada'))]
    const written = await answer()
    written.say('Yes')
    for (const stream of streams) await stream.until(() => stream.events.some(({ data }) => data.includes('Yes')))
    t.same((await visit(t, `${url}/api/chat/c/stream`, user('eve'))).status, 204, 'another user')
    written.end()
    streams.push(await visit(t, `${url}/api/chat/c/stream`, user('ada')))
    for (const stream of streams) {
      t.equal(stream.headers['x-vercel-ai-ui-message-stream'], 'v1')
      await stream.ended
      t.same(stream.events.filter(({ data }) => data !== '').map(({ event, data }) => [event, data]), first.events.filter(({ data }) => data !== '').map(({ data }) => ['message', data]))
    }
    t.match(first.events.filter(({ data }) => data !== '').map(({ data }) => data === '[DONE]' ? data : JSON.parse(data).type), ['start', 'start-step', 'text-start', 'text-delta', 'text-end', 'finish-step', 'finish', '[DONE]'])
    t.equal(answers.length, 1, 'the model is asked once')
    t.match(chats.get('ada c'), [{ id: 'q' }, { id: 'q-answer', role: 'assistant' }])
    t.equal((await visit(t, `${url}/api/chat/c/stream`, { headers: { 'x-user': 'ada', 'last-event-id': first.lastEventId! } })).status, 204, 'a client that has the whole answer')
    t.same(await (await fetch(`${url}/api/chat/c/stream`, { method: 'DELETE', ...user('ada') })).json(), { stopped: false })

    // A second question, from another tab: while the first is answered, and as soon as it is stopped.
    await post('ada', 'q2')
    await answer()
    t.equal((await post('ada', 'q3')).status, 409)
    t.same(chats.get('ada c')!.map(({ id }) => id), ['q', 'q-answer', 'q2'])
    t.same(await (await fetch(`${url}/api/chat/c/stream`, { method: 'DELETE', ...user('ada') })).json(), { stopped: true })
    const last = await post('ada', 'q3')
    const next = await answer()
    next.say('Yes')
    next.end()
    await last.ended
    await until(() => chats.get('ada c')!.length === 6)
    t.same(chats.get('ada c')!.map(({ id, metadata }) => [id, metadata]), [['q', undefined], ['q-answer', { status: 'done' }], ['q2', undefined], ['q2-answer', { status: 'stopped' }], ['q3', undefined], ['q3-answer', { status: 'done' }]], 'no message is lost')
  },

  async 'ai-chat-sdk-page' (t) {
    const { app, url, chats, answers, answer } = await startChat(t)
    const { fetch } = globalThis
    const { chatOptions, isComplete, stopAnswer } = await run(t, {
      fetch: (path: string, options: RequestInit) => fetch(url + path, { ...options, headers: { ...options.headers, 'x-user': 'ada' } })
    }, [], undefined) as { chatOptions (chat: { id: string, messages: UIMessage[] }): ChatOptions, isComplete (message: UIMessage): boolean, stopAnswer (id: string): Promise<void> }
    /** Opens the page of the chat: at first, after a reload, in another tab. */
    const open = (id = 'c') => new Tab(chatOptions({ id, messages: structuredClone(chats.get(`ada ${id}`) ?? []) }))

    const left = open()
    left.sendMessage({ text: 'Tea?' })
    const first = await answer()
    first.say('Hel')
    await left.shows(t, 'Hel', 'streaming')
    // The page is reloaded, and another tab is opened.
    await left.stop()
    const [tab, other] = [open(), open()]
    for (const each of [tab, other]) await each.shows(t, 'Hel', 'streaming')
    first.say('lo')
    for (const each of [tab, other]) await each.shows(t, 'Hello', 'streaming')
    t.equal(first.isAborted, false)
    // The connections are lost.
    for (const connection of app.sse.connections()) connection.close('max-age')
    for (const each of [tab, other]) await each.shows(t, 'Hello', 'error')
    first.say(', world')
    for (const each of [tab, other]) each.resumeStream()
    for (const each of [tab, other]) await each.shows(t, 'Hello, world', 'streaming')
    first.end()
    for (const each of [tab, other, open()]) {
      await each.shows(t, 'Hello, world', 'ready')
      t.same(each.messages, chats.get('ada c'))
      t.equal(isComplete(each.lastMessage!), true)
    }
    await tab.resumeStream()
    await tab.shows(t, 'Hello, world', 'ready')
    t.same(tab.messages, chats.get('ada c'), 'an answer that is received a second time')

    tab.sendMessage({ text: 'Milk?' })
    const second = await answer()
    second.say('Per')
    await tab.shows(t, 'Per', 'streaming')
    t.match(second.prompt, /Tea\?.*Hello, world.*Milk\?/, 'the model has the whole chat')
    const third = open()
    await third.shows(t, 'Per', 'streaming')
    await stopAnswer('c')
    for (const each of [tab, third]) {
      await each.shows(t, 'Per', 'ready')
      t.equal(isComplete(each.lastMessage!), false, 'an open tab shows that the answer is not complete')
    }
    t.equal(second.isAborted, true)
    await until(() => chats.get('ada c')!.length === 4)
    const marked = async (text: string, status: string) => {
      const page = open()
      await page.shows(t, text, 'ready')
      t.same(page.lastMessage!.metadata, { status })
      t.equal(isComplete(page.lastMessage!), false, 'the page shows that the answer is not complete')
    }
    await marked('Per', 'stopped')

    tab.regenerate()
    const broken = await answer()
    broken.say('Pe')
    broken.fail()
    await tab.shows(t, 'Pe', 'error')
    await until(() => chats.get('ada c')!.length === 4)
    t.equal(isComplete(tab.lastMessage!), false)
    await marked('Pe', 'failed')

    tab.regenerate()
    const again = await answer()
    again.say('No')
    again.end()
    await tab.shows(t, 'No', 'ready')
    t.same(tab.messages, chats.get('ada c'))
    t.equal(tab.messages.length, 4)
    t.equal(answers.length, 4)

    const empty = open('d')
    await empty.resumeStream()
    await empty.shows(t, '', 'ready')
    const transport = new DefaultChatTransport({ prepareReconnectToStreamRequest: () => ({ api: '/api/chat/c/stream' }) })
    t.ok(await transport.reconnectToStream({ chatId: 'd' }), 'another path')
  }
}
