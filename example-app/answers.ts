import { readFile } from 'node:fs/promises'
import { Type, type Static } from '@sinclair/typebox'
import type { FastifyInstance } from 'fastify'
import { Model } from './model.js'

const Answer = Type.Object({ id: Type.String({ pattern: '^[a-z0-9-]{8,64}$' }) })
const Question = Type.Object({
  prompt: Type.String({ maxLength: 500 }),
  /** The answer so far, if the process that read the model has ended. */
  begun: Type.String({ default: '', maxLength: 20_000 })
})
interface OfAnswer { Params: Static<typeof Answer> }

/** Adds the routes of answers. An answer is a run: it continues without its request, and is read again after a reload. */
export async function answerRoutes (app: FastifyInstance): Promise<void> {
  const model = new Model(await readFile(new URL('corpus.txt', import.meta.url), 'utf8'))

  app.post<OfAnswer & { Body: Static<typeof Question> }>('/answers/:id', { sse: true, schema: { params: Answer, body: Question } }, async (request, reply) => {
    const { params: { id }, body: { prompt, begun }, sseUser } = request
    const { run } = await app.sse.startRun(id, ({ signal }) => model.stream(prompt, signal, begun), { ownerId: sseUser?.userId ?? null })
    return await reply.sse(run)
  })

  app.get<OfAnswer>('/answers/:id', { sse: true, schema: { params: Answer } }, async ({ params: { id }, sseUser }, reply) =>
    await reply.sse(await app.sse.getRun(id, { ownerId: sseUser?.userId ?? null })))

  app.delete<OfAnswer>('/answers/:id', { sse: true, schema: { params: Answer } }, async ({ params: { id }, sseUser }) =>
    ({ stopped: await app.sse.stopRun(id, { ownerId: sseUser?.userId ?? null }) }))
}
