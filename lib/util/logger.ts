import { inspect } from 'node:util'

/** The logger of a manager. Fastify's logger implements it. A logged error is in `details.err`. */
export interface Log {
  /** Logs a failure, such as an unreachable event log. */
  error (details: object, message: string): void
  /** Logs an unexpected condition that the manager handles by itself. */
  warn (details: object, message: string): void
  /** Logs a recovery or another change of state. */
  info (details: object, message: string): void
  /** Logs normal operation. */
  debug (details: object, message: string): void
}

/** The default logger. Writes errors and warnings as process warnings, and drops `info` and `debug`. */
export const warnings: Log = { error: emit, warn: emit, info: () => {}, debug: () => {} }

/** Limits of an error's part in the text of a log line. */
const MAX_CAUSES = 4
const MAX_REASON_LENGTH = 300

function emit (details: object, message: string): void {
  process.emitWarning(message, { type: 'SSEManager', detail: inspect((details as { err?: unknown }).err ?? details) })
}

/**
 * Wraps the application's logger so that its methods never throw: an exception would abort a delivery. pino throws for a frozen
 * error and for an error with a throwing getter. Such a line is logged again with a plain copy of the error. If that fails too,
 * the first such line of the process becomes a process warning.
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

/** Copies the readable properties of an error. The copy has no prototype: pino would log the constructor's name as its type. */
function copyOf (err: unknown): { name: string, message: string, stack: string } {
  const text = (get: () => unknown): string => read(() => String(get())) ?? '[unreadable]'
  const error = err as Partial<Error> | null
  return Object.assign(Object.create(null), { name: text(() => error!.name), message: text(() => error instanceof Error ? error.message : err), stack: text(() => error!.stack) })
}

/** Returns the messages of an error and of its causes, for a log line: `Authentication could not be completed: connect ECONNREFUSED`. */
export function reasonsOf (error: unknown): string {
  const reasons: string[] = []
  for (let cause = error; cause !== undefined && cause !== null && reasons.length < MAX_CAUSES;) {
    const reason = reasonOf(cause)
    reasons.push(reason.length > MAX_REASON_LENGTH ? `${reason.slice(0, MAX_REASON_LENGTH)}…` : reason)
    cause = read(() => (cause as Partial<Error>).cause)
  }
  return reasons.join(': ')
}

/** A connection that was refused on several addresses has an empty message, a code and an error for each address. */
function reasonOf (cause: unknown): string {
  if (typeof cause === 'string') return cause
  const error = cause as { message?: string, code?: string, errors?: readonly Error[], name?: string }
  const texts = [() => error.message, () => error.code, () => error.errors?.[0]?.message, () => error.name]
  return texts.map(read).find(text => typeof text === 'string' && text !== '') ?? `a value of type ${typeof cause}`
}

/** Returns what a getter of the application returns; undefined if it throws. */
function read<T> (get: () => T): T | undefined {
  try {
    return get()
  } catch {
    return undefined
  }
}

let warned = false

/** Emits one process warning per process: a failing logger may fail for every event. */
function warnOnce (error: unknown, message: string): void {
  if (warned) return
  warned = true
  const { message: fault } = copyOf(error)
  try {
    process.emitWarning(`The application's logger failed: ${fault}. Not logged: ${message}. Further failures of loggers are not reported.`, { type: 'SSEManager', code: 'SSE_LOGGER_FAILED' })
  } catch {
    // `emitWarning` failed as well, so the failure is not reported.
  }
}
