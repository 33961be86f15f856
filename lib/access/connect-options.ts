import { InvalidOption } from '../errors.js'

/** Options of `reply.sse(source, options)`. */
export const SOURCE_OPTIONS: readonly string[] = ['clientInfo', 'retryMs', 'lastEventId']
/** Options of `reply.sse(options)`. */
export const CONNECT_OPTIONS: readonly string[] = ['subscriptions', ...SOURCE_OPTIONS]
/** Options of `createConnection(options)`. */
export const CREATE_OPTIONS: readonly string[] = ['request', 'response', 'user', 'authData', ...CONNECT_OPTIONS]

/**
 * Rejects unknown names: a misspelt `subscriptions` would open a stream that receives nothing, a misspelt `user` an anonymous stream.
 * @throws SSE_ERR_INVALID_OPTION
 */
export function assertNames (options: object, names: readonly string[], method: string): void {
  for (const name in options) if (!names.includes(name)) throw new InvalidOption(name, `of ${method} is not an option: it has ${names.join(', ')}`)
}
