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

/**
 * Makes a logger safe to call in the middle of a delivery: its methods never throw, whatever the application's logger does
 * with the error it is given. pino throws for an error that is frozen, or has a getter that throws. Such a line is logged
 * again with a plain copy of the error. If that fails too, the first such line of the process becomes a process warning.
 */
export function safeLog (log: Log): Log {
  const at = (level: keyof Log) => (details: object, message: string): void => write(log, level, details, message)
  return { error: at('error'), warn: at('warn'), info: at('info'), debug: at('debug') }
}

function write (log: Log, level: keyof Log, details: object, message: string): void {
  try {
    call(log, level, details, message)
  } catch {
    try {
      call(log, level, 'err' in details ? { ...details, err: copyOf(details.err) } : details, message)
    } catch (error) {
      warnOnce(error, message)
    }
  }
}

function call (log: Log, level: keyof Log, details: object, message: string): void {
  const answer: unknown = log[level](details, message)
  // The rejection of an asynchronous logger would end the process.
  if (answer instanceof Promise) answer.catch((error: unknown) => warnOnce(error, message))
}

/** What can be read of an error. Without a prototype: pino would name it by its constructor. */
function copyOf (err: unknown): { name: string, message: string, stack: string } {
  const read = (get: () => unknown): string => {
    try {
      return String(get())
    } catch {
      return '[unreadable]'
    }
  }
  const error = err as Partial<Error> | null
  return Object.assign(Object.create(null), { name: read(() => error!.name), message: read(() => error instanceof Error ? error.message : err), stack: read(() => error!.stack) })
}

let warned = false

/** Once: a logger that fails may fail for each event. */
function warnOnce (error: unknown, message: string): void {
  if (warned) return
  warned = true
  const { message: fault } = copyOf(error)
  try {
    process.emitWarning(`The application's logger failed: ${fault}. Not logged: ${message}. Further failures of loggers are not reported.`, { type: 'SSEManager', code: 'SSE_LOGGER_FAILED' })
  } catch {
    // Nothing is left to report to.
  }
}
