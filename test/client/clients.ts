import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { once } from 'node:events'
import type { Test } from 'tap'
import { createClient, type ClientOptions, type ClientState, type SSEClient } from '../../lib/client/index.js'
import { testClock, type TestClock } from '../../lib/testing/index.js'
import { kClock } from '../../lib/util/clock.js'
import { until } from '../helpers/wait.js'

export interface Connected {
  client: SSEClient
  /** All states, the first one included. */
  states: ClientState[]
  /** Waits for a state of this name that is the newest one. */
  become<N extends ClientState['name']> (name: N): Promise<ClientState & { name: N }>
}

/** A client that is closed when the test ends. */
export function connect (t: Test, url: string, options: ClientOptions = {}): Connected {
  const client = createClient(url, options)
  t.teardown(() => client.close())
  const states: ClientState[] = [client.state]
  client.onState(state => { states.push(state) })
  return { client, states, become: async name => await until(() => client.state.name === name && client.state as any, undefined, `the client is ${name}`) }
}

/** The option that gives a client a clock, as that of the plugin. */
export function timed (clock: TestClock): ClientOptions {
  return { [kClock]: clock.clock } as ClientOptions
}

export type Answer = (response: ServerResponse, request: IncomingMessage) => void

export interface ScriptedServer {
  url: string
  /** All requests, in their order. */
  requests: IncomingMessage[]
  /** How requests are answered that the script has not come to. Requests beyond the script get its last answer. */
  answers: Answer[]
  /** Resolves when this many requests have come. */
  received (count: number): Promise<void>
  close (): Promise<void>
}

/** A server of node:http that answers each request with the next answer of a script. */
export async function script (t: Test, ...answers: Answer[]): Promise<ScriptedServer> {
  const requests: IncomingMessage[] = []
  const server = createServer((request, response) => {
    requests.push(request)
    const answer = answers.length > 1 ? answers.shift()! : answers[0]!
    answer(response, request)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const close = async (): Promise<void> => {
    server.closeAllConnections()
    if (server.listening) await new Promise(resolve => server.close(resolve))
  }
  t.teardown(close)
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/sse`,
    requests,
    answers,
    close,
    async received (count) { await until(() => requests.length >= count, undefined, `${count} requests`) }
  }
}

/** A stream that stays open after this text. */
export const stream = (text: string): Answer => response => { response.writeHead(200, { 'content-type': 'text/event-stream' }).write(text) }

/** A stream that ends after this text. */
export const ended = (text: string): Answer => response => { response.writeHead(200, { 'content-type': 'text/event-stream' }).end(text) }

/** A stream whose connection ends after this text, without the end of the response. */
export const cut = (text: string): Answer => (response, request) => { response.writeHead(200, { 'content-type': 'text/event-stream' }).write(text, () => { request.socket.end() }) }

/** A response of JSON, or of another type. */
export const status = (code: number, body: object = {}, headers: Record<string, string> = {}): Answer => response => { response.writeHead(code, { 'content-type': 'application/json', ...headers }).end(code === 204 ? undefined : JSON.stringify(body)) }

export { testClock }
