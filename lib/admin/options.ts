import { Type, type Static } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { resolve } from '../util/option-schema.js'

/** Options of `fastify-sse-manager/admin`. */
export interface AdminOptions {
  /** Path of the page, such as `/admin/streams`. It begins with `/` and does not end with it. */
  path: string
  /**
   * Returns, or resolves with, `true` for a request that is allowed. Any other result is answered with 403. It is called for each request of the page, and every
   * five minutes while the page is open. It can answer by itself, for example with a redirect to a sign-in page, or throw.
   */
  authorize: (request: FastifyRequest, reply: FastifyReply) => unknown
  /** Whether the page can close connections and disconnect users. Default false. */
  actions?: boolean
  /** Whether the page can show the data of events in the log. Default false. */
  payloads?: boolean
  /** The names of the option `decorators` of the plugin. Default `{ instance: 'sse', reply: 'sse' }`. */
  decorators?: {
    /** Name of the manager on the Fastify instance. Default `'sse'`. */
    instance?: string
    /** Name of the method on replies and of the route option. Default `'sse'`. */
    reply?: string
  }
}

const AdminOptionsSchema = Type.Object({
  path: Type.String({ pattern: '^/.*[^/]$', rule: 'must begin with "/" and must not end with it', description: 'Path of the page.' }),
  authorize: Type.Unsafe<AdminOptions['authorize']>(Type.Function([], Type.Unknown(), { description: 'Function `(request, reply)` that returns, or resolves with, `true` for a request that is allowed.', protects: true })),
  actions: Type.Boolean({ default: false, description: 'Whether the page can close connections and disconnect users.' }),
  payloads: Type.Boolean({ default: false, description: 'Whether the page can show the data of events in the log.' }),
  decorators: Type.Object({ instance: Type.String({ minLength: 1, default: 'sse' }), reply: Type.String({ minLength: 1, default: 'sse' }) }, { additionalProperties: false, default: {} })
}, { additionalProperties: false })

const compiled = TypeCompiler.Compile(AdminOptionsSchema)

/** The options with their defaults. */
export type ResolvedAdminOptions = Static<typeof AdminOptionsSchema>

/** Validates the options. Those of Fastify's `register` are ignored: Fastify reads them. @throws SSE_ERR_INVALID_OPTION */
export function resolveAdminOptions (given: object): ResolvedAdminOptions {
  const { prefix, logLevel, logSerializers, ...own } = given as Record<string, unknown>
  return resolve(AdminOptionsSchema, compiled, own, { where: 'of the admin page ' })
}
