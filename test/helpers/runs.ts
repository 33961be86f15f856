import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import type { RunFactory, RunItem, RunOptions, SSEOptions } from '../../lib/index.js'
import { openStream, type OpenStreamOptions, type TestStream } from '../../lib/testing/index.js'
import { anyAnswer, serve, type Service } from './app.js'

/** A source that a test feeds by hand, and what its run did to it. */
export class Hand {
  /** How often the source was made. */
  calls = 0
  signal: AbortSignal | null = null
  /** How often the source was told to stop. */
  returned = 0
  readonly #items: (RunItem | Error | null)[] = []
  #wake: (() => void) | null = null

  readonly factory: RunFactory = ({ signal }) => {
    this.calls++
    this.signal = signal
    return { [Symbol.asyncIterator]: () => ({ next: () => this.#next(), return: async () => { this.returned++; return { done: true, value: undefined } } }) } as AsyncIterable<RunItem>
  }

  async #next (): Promise<IteratorResult<RunItem>> {
    while (this.#items.length === 0) await new Promise<void>(resolve => { this.#wake = resolve })
    const item = this.#items.shift()!
    if (item instanceof Error) throw item
    return item === null ? { done: true, value: undefined } : { done: false, value: item }
  }

  yield (...items: RunItem[]): void {
    this.#add(...items)
  }

  end (): void {
    this.#add(null)
  }

  fail (error: Error): void {
    this.#add(error)
  }

  #add (...items: (RunItem | Error | null)[]): void {
    this.#items.push(...items)
    this.#wake?.()
  }
}

export const never: RunFactory = () => ({ [Symbol.asyncIterator]: () => ({ next: () => new Promise(() => {}) }) }) as AsyncIterable<RunItem>

export interface RunService extends Service {
  /** Starts the run `id` of this owner, by default a public one. */
  begin (id: string, source: RunFactory, options?: Partial<RunOptions>): ReturnType<FastifyInstance['sse']['startRun']>
  /** Reads the run `id` of an owner. */
  read (id: string, options?: OpenStreamOptions & { ownerId?: string, control?: boolean }): Promise<TestStream>
}

/** An application with runs, and a route that sends a run if there is one. */
export async function serveRuns (t: Test, options: SSEOptions = {}): Promise<RunService> {
  const service = await serve(t, { ...options, runs: { drainMs: 50, ...options.runs } }, {}, app => {
    app.get('/runs/:id', { sse: true }, async (request, reply) => {
      const { id } = request.params as { id: string }
      const { owner = null, control } = request.query as { owner?: string, control?: string }
      await reply.sse(await app.sse.getRun(id, { ownerId: owner }), control === undefined ? {} : { control: ({ true: true, false: false }[control] ?? control) as boolean })
      return reply
    })
  })
  return {
    ...service,
    begin: (id, source, more) => service.app.sse.startRun(id, source, { ownerId: null, ...more }),
    read: (id, { ownerId, control, ...open } = {}) => {
      const query = new URLSearchParams({ ...(ownerId !== undefined && { owner: ownerId }), ...(control !== undefined && { control: String(control) }) })
      return openStream(service.app, `/runs/${encodeURIComponent(id)}?${query}`, anyAnswer(t, open))
    }
  }
}

/** Events of a stream as `[id, event, data]`, without `sse:close`. */
export function told (stream: TestStream): [string, string, string][] {
  return stream.events.filter(({ event }) => event !== 'sse:close').map(({ id, event, data }) => [id ?? '', event, data])
}

/** The data of the events without a name. */
export function tokens (stream: TestStream): string[] {
  return stream.named('message').map(({ data }) => data)
}
