import createError from '@fastify/error'

// What the board's own routes answer with; the plugin brings its SSE_ERR_ codes.
export const SignInFirst = createError('BOARD_SIGN_IN_FIRST', 'Sign in first', 401)
export const NotAllowed = createError<[string]>('BOARD_NOT_ALLOWED', '%s', 403)
export const NotFound = createError<[string]>('BOARD_NOT_FOUND', '%s', 404)
export const TooFast = createError('BOARD_TOO_FAST', 'Slow down: too many posts in a short time', 429)
