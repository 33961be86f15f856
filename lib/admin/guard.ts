import type { FastifyReply, FastifyRequest } from 'fastify'
import { assertOrigin } from '../access/origin.js'
import { AdminForbidden, OriginForbidden } from '../errors.js'
import type { ResolvedAdminOptions } from './options.js'

/** Header of every action. A page of another origin can send it only if the server allows the header to that origin. */
export const ACTION_HEADER = 'x-sse-admin'

/** Headers of every answer. The page loads only its own files, sends only to its own routes, and is shown in no frame. */
const HEADERS = {
  'content-security-policy': "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'x-frame-options': 'DENY',
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
  'cross-origin-opener-policy': 'same-origin',
  'cache-control': 'no-store'
}

/** Returns a hook that sets the headers and asks `authorize`. */
export function authorizing ({ authorize }: ResolvedAdminOptions) {
  return async (request: FastifyRequest, reply: FastifyReply): Promise<unknown> => {
    reply.headers(HEADERS)
    const allowed = await authorize(request, reply)
    if (reply.sent) return reply
    if (allowed !== true) throw new AdminForbidden('the option "authorize" did not return true for this request')
    return undefined
  }
}

/** A hook of all routes but the page itself, to which other sites may link. An application can allow other origins to read its answers. */
export async function sameOrigin (request: FastifyRequest): Promise<void> {
  try {
    assertOrigin({ allowedOrigins: [] }, request)
  } catch (error) {
    if (!(error instanceof OriginForbidden)) throw error
    throw new AdminForbidden('only its own page can use it, and this request comes from another origin')
  }
}

/** A hook of the actions. */
export async function fromPage (request: FastifyRequest): Promise<void> {
  if (request.headers[ACTION_HEADER] !== '1') throw new AdminForbidden(`an action needs the header "${ACTION_HEADER}: 1"`)
}
