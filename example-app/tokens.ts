import { readFile } from 'node:fs/promises'
import { Type, type Static } from '@sinclair/typebox'
import type { FastifyInstance } from 'fastify'
import { Model } from './model.js'

const Prompt = Type.Object({ prompt: Type.String({ default: '', maxLength: 500 }) })

/** Adds a route that streams the tokens of a model to one client, until the answer ends or the client disconnects. */
export async function tokenRoutes (app: FastifyInstance): Promise<void> {
  const model = new Model(await readFile(new URL('corpus.txt', import.meta.url), 'utf8'))

  app.get<{ Querystring: Static<typeof Prompt> }>('/tokens', { sse: true, schema: { querystring: Prompt } }, (request, reply) =>
    reply.sse(({ signal }) => answer(model, request.query.prompt, signal)))
}

async function * answer (model: Model, prompt: string, signal: AbortSignal) {
  const startedAt = performance.now()
  let tokens = 0
  for await (const token of model.stream(prompt, signal)) {
    tokens++
    yield token
  }
  yield { event: 'done', data: { tokens, tookMs: Math.round(performance.now() - startedAt) } }
}
