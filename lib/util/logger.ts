import { inspect } from 'node:util'

/** Where a manager reports what the application should know; Fastify's logger fits. */
export interface Log {
  error (details: object, message: string): void
  warn (details: object, message: string): void
  info (details: object, message: string): void
  debug (details: object, message: string): void
}

/** Without a logger, what the application should know becomes a process warning. */
export const warnings: Log = { error: emit, warn: emit, info: () => {}, debug: () => {} }

function emit (details: object, message: string): void {
  process.emitWarning(message, { type: 'SSEManager', detail: inspect((details as { err?: unknown }).err ?? '') })
}
