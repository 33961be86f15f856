import { Type, type Static } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import { Buffer } from 'node:buffer'
import { InvalidOption, InvalidRunId } from '../errors.js'
import { bytes, durationMs, resolve } from '../util/option-schema.js'
import { kindOf } from '../util/quote.js'
import { runKey, type RunKey } from '../log/run-store.js'

const MAX_ID_BYTES = 256
/**
 * Time without a reader after which a run with `onDisconnect: 'stop'` is stopped, and the shortest that can be chosen. A page that is
 * reloaded needs about as long, and so does the news of a reader to reach another node.
 */
const STOP_GRACE_MS = 1_000
/** In a shorter time, readers on other nodes may not learn how the run has ended. */
const MIN_TTL_MS = 5_000

const Owner = Type.Union([Type.String(), Type.Null()], { protects: true, description: 'The id of the user to whom the run belongs, or null for a public run. For any other owner the run does not exist.' })

/** The schema of the options of `startRun()`. */
const RunOptionsSchema = Type.Object({
  ownerId: Owner,
  ifFinished: Type.Union([Type.Literal('restart'), Type.Literal('join')], { default: 'restart', description: 'What happens if a run with this id has ended and is still kept.' }),
  ttlMs: durationMs('Time for which the run is kept after its end, in milliseconds.', 300_000, MIN_TTL_MS),
  maxEvents: Type.Integer({ minimum: 1, maximum: 10_000_000, default: 100_000, description: 'Maximum number of events.' }),
  maxBytes: bytes('Maximum size of the events as they are sent, without their ids, in bytes.', 4 * 1024 * 1024, 1),
  maxDurationMs: durationMs('Maximum duration, in milliseconds.', 600_000, 1),
  idleTimeoutMs: durationMs('Maximum time between two items of the source, in milliseconds.', 120_000, 1),
  onDisconnect: Type.Union([Type.Literal('continue'), Type.Literal('stop'), Type.Object({ graceMs: durationMs('', STOP_GRACE_MS, STOP_GRACE_MS) }, { additionalProperties: false })], { default: 'continue', description: 'What happens while no client reads the run.' })
}, { additionalProperties: false })
const OwnerSchema = Type.Object({ ownerId: Owner }, { additionalProperties: false })

/** Options of `getRun()`, `stopRun()` and `listRuns()`. */
export interface RunOwner {
  /** The user to whom the run belongs; null for a public run. Mandatory: a run of another owner does not exist for the caller. */
  ownerId: string | null
}

/** Options of `startRun()`. Those of the first start count while a run is running. */
export interface RunOptions extends RunOwner {
  /** What happens if a run with this id has ended and is still kept. `'restart'`: a new run replaces it. `'join'`: it is returned. Default `'restart'`. */
  ifFinished?: 'restart' | 'join'
  /** Time for which the run can be read after its end, in milliseconds, 5,000 or more. Default 300,000. */
  ttlMs?: number
  /** Maximum number of events, 1 to 10,000,000. Above it, the run ends as `failed` with the reason `limit`. Default 100,000. */
  maxEvents?: number
  /** Maximum size of the events as they are sent, without their ids, in bytes. Above it, the run ends as `failed` with the reason `limit`. Default 4 MB. */
  maxBytes?: number
  /** Maximum duration, in milliseconds. After it, the run ends as `failed` with the reason `timeout`. Default 600,000. */
  maxDurationMs?: number
  /** Maximum time between two items of the source, in milliseconds. After it, the run ends as `failed` with the reason `timeout`. Default 120,000. */
  idleTimeoutMs?: number
  /**
   * What happens while no client on any node reads the run, from its start. `'continue'`: nothing. `{ graceMs }`: after this time, in
   * milliseconds, the run ends as `stopped` with the reason `disconnect`. `'stop'`: the same after a second. Default `'continue'`.
   */
  onDisconnect?: 'continue' | 'stop' | {
    /** Time without a reader, in milliseconds, 1,000 or more. */
    graceMs: number
  }
}

/** The options of a run with their defaults. */
export interface RunSettings extends Omit<Static<typeof RunOptionsSchema>, 'onDisconnect'> {
  /** Time without a reader after which the run is stopped, in milliseconds; Infinity for never. */
  readonly graceMs: number
  /** All options that concern the run itself, as text. */
  readonly text: string
}

const compiled = TypeCompiler.Compile(RunOptionsSchema)
const compiledOwner = TypeCompiler.Compile(OwnerSchema)

/** Validates the options of `startRun()` and returns them with their defaults. @throws SSE_ERR_INVALID_OPTION */
export function resolveRunOptions (given: unknown): RunSettings {
  const { onDisconnect, ...options } = resolve(RunOptionsSchema, compiled, given ?? {}, { where: 'of startRun() ' })
  assertOwner(options.ownerId, 'startRun')
  const graceMs = onDisconnect === 'continue' ? Infinity : onDisconnect === 'stop' ? STOP_GRACE_MS : onDisconnect.graceMs
  const { ownerId, ifFinished, ...own } = options
  return { ...options, graceMs, text: JSON.stringify({ ...own, onDisconnect }) }
}

/** Returns the owner of the given options. @throws SSE_ERR_INVALID_OPTION */
export function resolveOwner (given: unknown, method: string): string | null {
  const { ownerId } = resolve(OwnerSchema, compiledOwner, given ?? {}, { where: `of ${method}() ` })
  assertOwner(ownerId, method)
  return ownerId
}

/** In UTF-8, owners that differ in lone surrogates only would be the same. */
function assertOwner (ownerId: string | null, method: string): void {
  if (ownerId !== null && !ownerId.isWellFormed()) throw new InvalidOption('ownerId', `of ${method}() must not have lone surrogates`)
}

/** Returns the key of a run. @throws SSE_ERR_INVALID_RUN_ID */
export function keyOf (runId: unknown, ownerId: string | null): RunKey {
  if (typeof runId !== 'string') throw new InvalidRunId(`must be a string, got ${kindOf(runId)}`)
  const size = Buffer.byteLength(runId)
  if (size === 0 || size > MAX_ID_BYTES || !runId.isWellFormed()) throw new InvalidRunId(`must have 1 to ${MAX_ID_BYTES} bytes without lone surrogates, has ${size}`)
  return runKey(runId, ownerId)
}
