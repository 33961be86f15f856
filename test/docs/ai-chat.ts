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

/** Of the samples in docs/recipes/ai-chat.md. */
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

    const put = async () => (await app.inject({ method: 'PUT', url: '/questions/q1', headers: { 'content-type': 'text/plain' }, payload: 'tea' })).json()
    t.same(await put(), { started: true })
    const stream = await visit(t, `${url}/answers/q1`)
    pace.permits = 2
    t.same((await stream.collect(2)).map(({ data }) => data), ['You ', 'asked: '])
    t.same(await put(), { started: false }, 'a request that is repeated')
    t.same((await app.inject({ method: 'DELETE', url: '/answers/q1' })).json(), { stopped: true })
    await stream.ended
    t.match(stream.named('sse:end').map(({ json }) => json), [{ status: 'stopped', events: 2 }])
    await until(() => questions.get('q1')!.status === 'stopped')
    t.equal(questions.get('q1')!.answer, 'You asked: ')
    t.same(await put(), { started: false }, 'a request that is repeated later')
    t.equal(questions.get('q1')!.answer, 'You asked: ')
    t.equal((await visit(t, `${url}/answers/none`)).status, 204)

    const page = await browse(t, url)
    if (page === null) return
    const other = await page.context().browser()!.newPage()
    await other.goto(url)
    const shows = async (page: Page, text: string, state?: string) => {
      const row = page.locator('#chat > div').last()
      const isShown = async () => await row.locator('p').textContent() === text && (state === undefined || await row.locator('i').textContent() === state)
      t.ok(await until(isShown, undefined, `${text}: ${state}`), `${text}: ${state}`)
    }
    const bothShow = (text: string, state?: string) => Promise.all([page, other].map(tab => shows(tab, text, state)))
    const ask = async (text: string, tabs = [page, other]) => {
      await page.fill('#text', text)
      await page.click('#ask')
      for (const tab of tabs) await tab.locator('b', { hasText: text }).waitFor()
    }
    await bothShow('You asked: ', 'stopped')

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
        const stored = isStored ? [...server.questions.values()] : []
        await kill(server)
        server = await start(t, port, stored)
        await shows(page, `You asked: ${text} `, 'interrupted')
        await until(() => server.app.sse.connectionCount === 1, undefined, 'the list only')
        await shows(page, `You asked: ${text} `, 'interrupted')
      })
    }
    await kill(server)
    await page.click('#ask')
    t.ok(await until(async () => await page.locator('#problem').textContent() !== ''), 'the page says that nothing was asked')
  },

  async 'ai-chat-continue' (t) {
    const app = bare(t)
    await app.register(ssePlugin, { requireAuthentication: true, authHandler: ({ headers }) => headers['x-user'] as string ?? null })
    const { model, hands } = handModel()
    await run(t, { app, model })
    const ownerId = 'ada'
    const { run: lost } = await app.sse.startRun('7', function * () {
      yield 'Tea is'
      throw new Error('as if the node was lost')
    }, { ownerId })
    await lost.finished
    app.get('/answers/:id', { sse: true }, async (_request, reply) => reply.sse(await app.sse.getRun('7', { ownerId })))
    const url = await listen(app)
    const headers = { 'x-user': ownerId }
    const before = await visit(t, `${url}/answers/7`, { headers })
    await before.ended
    const post = async () => (await app.inject({ method: 'POST', url: '/answers/7/continue', headers, payload: { prompt: 'Tea?', begun: 'Tea is' } })).json()
    t.same([await post(), await post()], [{ started: true }, { started: false }])
    const stream = await visit(t, `${url}/answers/7`, { headers: { ...headers, 'last-event-id': before.events[0]!.id! } })
    await until(() => hands.length === 1)
    t.match(hands[0]!.prompt, /Tea\?.*Tea is/s)
    hands[0]!.hand.yield(' good')
    hands[0]!.hand.end()
    await stream.ended
    t.same(stream.events.map(({ event, data }) => event === 'message' ? data : event).filter(text => text !== 'sse:close'), ['sse:gap', 'Tea is', ' good', 'sse:end'])
  },

  async 'ai-chat-users' (t) {
    const app = bare(t)
    const { model, hands } = handModel()
    const findSession = async (id: string | undefined) => id === undefined ? null : { userId: id, expiresAt: Date.now() + 60_000, role: 'user' }
    await run(t, { app, model, findSession })
    const url = await listen(app)
    const of = (user: string) => ({ headers: { cookie: `session=${user}` } })
    const call = async (method: 'PUT' | 'DELETE', path: string, user?: string) => {
      const { statusCode, body } = await app.inject({ method, url: path, headers: { ...(user !== undefined && of(user).headers), ...(method === 'PUT' && { 'content-type': 'text/plain' }) }, ...(method === 'PUT' && { payload: 'Tea?' }) })
      return statusCode === 200 ? JSON.parse(body) : statusCode
    }
    for (const path of ['/chat', '/answers/1']) t.equal((await visit(t, url + path)).status, 401)
    t.same([await call('PUT', '/questions/1'), await call('DELETE', '/answers/1')], [401, 401])

    const [ada, eve] = [await visit(t, `${url}/chat`, of('ada')), await visit(t, `${url}/chat`, of('eve'))]
    t.same(await call('PUT', '/questions/1', 'ada'), { started: true })
    t.equal((await visit(t, `${url}/answers/1`, of('eve'))).status, 204)
    t.same(await call('DELETE', '/answers/1', 'eve'), { stopped: false })
    t.same(await call('PUT', '/questions/1', 'eve'), { started: true }, 'the same id, of another user')
    const answer = await visit(t, `${url}/answers/1`, of('ada'))
    await until(() => hands.length === 2)
    hands[0]!.hand.yield('Yes')
    hands[0]!.hand.end()
    await answer.ended
    t.same(answer.events[0]!.data, 'Yes')
    t.same(await call('DELETE', '/answers/1', 'eve'), { stopped: true })
    const states = (stream: TestStream) => stream.named('questions').map(({ json }) => (json as Question[]).map(({ answer, status }) => [answer, status]).flat())
    for (const stream of [ada, eve]) await stream.until(() => states(stream).length === 3)
    t.same([states(ada), states(eve)], [[[], ['', 'running'], ['Yes', 'done']], [[], ['', 'running'], ['', 'stopped']]], 'each user has a list')
    t.same(states(await visit(t, `${url}/chat`, of('ada')).then(async stream => { await stream.next('questions'); return stream })), [['Yes', 'done']])
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
    const post = (name: string) => visit(t, `${url}/api/chat`, { method: 'POST', headers: { 'x-user': name, 'content-type': 'application/json' }, body: JSON.stringify({ id: 'c', message: question('q', 'Tea?') }) })
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
  },

  async 'ai-chat-sdk-page' (t) {
    const { app, url, chats, answers, answer } = await startChat(t)
    const { fetch } = globalThis
    const { chatOptions, stopAnswer } = await run(t, {
      fetch: (path: string, options: RequestInit) => fetch(url + path, { ...options, headers: { ...options.headers, 'x-user': 'ada' } })
    }, [], undefined) as { chatOptions (chat: { id: string, messages: UIMessage[] }): ChatOptions, stopAnswer (id: string): Promise<void> }
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
    for (const each of [tab, third]) await each.shows(t, 'Per', 'ready')
    t.equal(second.isAborted, true)
    await until(() => chats.get('ada c')!.length === 4)
    const marked = async (text: string, status: string) => {
      const page = open()
      await page.shows(t, text, 'ready')
      t.same(page.lastMessage!.metadata, { status }, 'the page shows that the answer is not complete')
    }
    await marked('Per', 'stopped')

    tab.regenerate()
    const broken = await answer()
    broken.say('Pe')
    broken.fail()
    await tab.shows(t, 'Pe', 'error')
    await until(() => chats.get('ada c')!.length === 4)
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
