import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import type { FastifyInstance } from 'fastify'

/**
 * Adds the route of `fastify-sse-manager/client`, which the pages import. It is built here from the source, so that the app starts without
 * a build of the package. An application sends the file of the installed package, see docs/guides/client.md.
 */
export async function clientRoute (app: FastifyInstance): Promise<void> {
  const source = fileURLToPath(new URL('../lib/client/index.ts', import.meta.url))
  const { outputFiles: [file] } = await build({ entryPoints: [source], bundle: true, minify: true, format: 'esm', target: 'es2022', write: false })
  app.get('/sse-client.js', (request, reply) => reply.type('text/javascript').send(file!.text))
}
