import createError from '@fastify/error'

// Errors of the board's own routes. The plugin has its own SSE_ERR_ codes.
export const SignInFirst = createError('BOARD_SIGN_IN_FIRST', 'Sign in first', 401)
export const NotAllowed = createError<[string]>('BOARD_NOT_ALLOWED', '%s', 403)
export const NotFound = createError<[string]>('BOARD_NOT_FOUND', '%s', 404)
export const TooFast = createError('BOARD_TOO_FAST', 'Slow down: too many posts in a short time', 429)
export const UnknownHost = createError<[string]>('BOARD_UNKNOWN_HOST', 'This server has no name "%s": ask for localhost, or start it with ALLOWED_HOSTS', 421)
export const CrossSite = createError('BOARD_CROSS_SITE', 'Pages of other origins must not send this', 403)
