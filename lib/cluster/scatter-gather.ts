import type { ArgumentsOf, Command, Commands, ResultOf } from './commands.js'
import { Closed, CommandFailed, reviveError, SSEError, TooManyCommands } from '../errors.js'
import type { Log } from '../util/logger.js'
import type { NodeWay } from '../log/event-log.js'
import type { MessageOf, Saying } from './node-message.js'

/** Commands of this node that wait for answers, at most. */
const MAX_PENDING = 1_000
/** A node that has not answered is asked this often within the time it has. */
const ATTEMPTS = 4
/** Commands that are on their way once more, at most: to ask again must not be what holds up the answers. */
const MAX_REPEATS = 32
/** Answers that are kept for nodes that ask again, at most. */
const MAX_ANSWERS = 10_000

export interface ScatterHost {
  /** Whether there can be other nodes. */
  readonly shared: boolean
  readonly answerTimeoutMs: number
  /** The other nodes that live. */
  others (): Iterable<string>
  /** Time in which all that live will have been heard of, in milliseconds. */
  settlesInMs (): number
  /** Rejects when the others cannot be reached. */
  say (saying: Saying, way: NodeWay): Promise<void>
}

/** What the nodes answered, together, and whether all have that were to. */
export interface Outcome<R> {
  readonly value: R | null
  readonly complete: boolean
}

type Answer = { value: unknown } | { error: { code: string, message: string } }

/**
 * Has something done by this node and by all others, and gathers what they answer. Others are asked again until they have
 * answered, or time is up; they know a command that they have done by its sender and id, and do it once.
 */
export class ScatterGather {
  readonly #operations: Commands
  readonly #host: ScatterHost
  readonly #log: Log
  readonly #pending = new Map<number, Gathering>()
  /** What this node has done for others and may be asked again, oldest first. */
  readonly #answers = new Map<string, Promise<Answer>>()
  #asked = 0
  #repeats = 0

  constructor (operations: Commands, host: ScatterHost, log: Log) {
    this.#operations = operations
    this.#host = host
    this.#log = log
  }

  /**
   * Asks this node first, and the others when that does not decide it; where each node has a part, without waiting for this
   * one. Resolves as soon as it is decided; with what there is when a node has not answered in time.
   * @throws what the operation throws, here or elsewhere; SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_TOO_MANY_COMMANDS
   */
  async ask<N extends keyof Commands> (name: N, ...args: ArgumentsOf<N>): Promise<Outcome<ResultOf<N>>> {
    const operation = this.#operations[name] as unknown as Command
    const running = operation.run(...args)
    // Where each has a part in it, the others begin at once: the application may take its time here.
    const asked = this.#host.shared && operation.merge !== null ? this.#askOthers(name, operation, args) : null
    asked?.catch(() => {})
    const own = await running
    if (asked !== null) {
      const { value, complete } = await asked
      return { value: value === null ? own : operation.merge!(own, value), complete } as Outcome<ResultOf<N>>
    }
    const outcome = !this.#host.shared || own !== null ? { value: own, complete: true } : await this.#askOthers(name, operation, args)
    return outcome as Outcome<ResultOf<N>>
  }

  async #askOthers (name: string, operation: Command, args: unknown[]): Promise<Outcome<unknown>> {
    if (this.#pending.size >= MAX_PENDING) throw new TooManyCommands(MAX_PENDING)
    const id = ++this.#asked
    const command = { kind: 'command', id, operation: name, args } as const
    const { answerTimeoutMs } = this.#host
    const say = (): Promise<void> => this.#host.say(command, WAYS[operation.effect])
    const gathering = new Gathering(operation, this.#host.others(), say)
    this.#pending.set(id, gathering)
    // What is in the log is read there; what is lost is the answer.
    const timer = setInterval(() => {
      const to = gathering.awaited
      if (to.length === 0 || this.#repeats >= MAX_REPEATS) return
      this.#repeats++
      this.#host.say({ ...command, to }, operation.effect === 'change' ? 'ordered' : 'apart').catch(() => {}).finally(() => { this.#repeats-- })
    }, answerTimeoutMs / ATTEMPTS)
    try {
      await say()
      return await gathering.end(answerTimeoutMs, this.#host.settlesInMs())
    } finally {
      clearInterval(timer)
      this.#pending.delete(id)
    }
  }

  /** The log has lost what was said there: commands that are not answered yet are said again. */
  again (): void {
    for (const gathering of this.#pending.values()) gathering.again()
  }

  /** Does what another node asks for, once, and answers. */
  async obey (command: MessageOf<'command'>): Promise<void> {
    const { from: to, id, operation: name } = command
    const answer = this.#answer(command)
    if (answer === null) return
    this.#host.say({ kind: 'answer', to, id, ...await answer }, 'apart').catch(err => {
      this.#log.debug({ err, operation: name }, 'A command of another node could not be answered')
    })
  }

  /** Null for what is asked again and has yet to be read in the log. */
  #answer ({ from, id, operation: name, args, to }: MessageOf<'command'>): Promise<Answer> | null {
    const operation = Object.hasOwn(this.#operations, name) ? this.#operations[name as keyof Commands] as unknown as Command : null
    if (operation?.args.Check(args) !== true) {
      this.#log.warn({ operation: name, nodeId: from }, 'A node of another version asks for an operation that this node does not know')
      return Promise.resolve(failed(new CommandFailed()))
    }
    if (operation.effect === 'ask') return this.#run(name, operation, args)
    const key = `${from} ${id}`
    const known = this.#answers.get(key)
    if (known !== undefined) return known
    if (to !== undefined && operation.effect === 'revoke') return null
    const answer = this.#run(name, operation, args)
    this.#answers.set(key, answer)
    if (this.#answers.size > MAX_ANSWERS) this.#answers.delete(this.#answers.keys().next().value!)
    return answer
  }

  async #run (name: string, operation: Command, args: unknown[]): Promise<Answer> {
    try {
      return { value: await operation.run(...args) }
    } catch (err) {
      // The cause stays here: it may be anything, and is for this node's log only.
      if (!(err instanceof SSEError) || err.statusCode >= 500) this.#log.error({ err, operation: name }, 'A command of another node failed')
      return failed(err instanceof SSEError ? err : new CommandFailed())
    }
  }

  answered ({ from, id, value = null, error }: MessageOf<'answer'>): void {
    const gathering = this.#pending.get(id)
    if (gathering === undefined) return
    if (error !== undefined) gathering.fail(from, reviveError(error.code, error.message))
    else gathering.answered(from, value)
  }

  /** A node is gone: nobody waits for it any more. */
  gone (nodeId: string): void {
    for (const gathering of this.#pending.values()) gathering.gone(nodeId)
  }

  close (): void {
    for (const gathering of this.#pending.values()) gathering.abort(new Closed())
  }
}

const WAYS = { ask: 'apart', change: 'ordered', revoke: 'logged' } as const satisfies Record<Command['effect'], NodeWay>

/** The answers to one command. */
class Gathering {
  readonly #operation: Command
  readonly #awaited: Set<string>
  /** Whose part is counted: a node that was asked again may answer twice. */
  readonly #answered = new Set<string>()
  #value: unknown = null
  #error: Error | null = null
  #waiting = true
  #settled = false
  #decided: () => void = () => {}
  readonly #say: () => Promise<void>

  constructor (operation: Command, others: Iterable<string>, say: () => Promise<void>) {
    this.#operation = operation
    this.#say = say
    this.#awaited = new Set(others)
  }

  /** The nodes that have not answered. */
  get awaited (): string[] {
    return [...this.#awaited]
  }

  again (): void {
    if (this.#operation.effect === 'revoke') this.#say().catch(() => {})
  }

  answered (from: string, value: unknown): void {
    const { merge, result } = this.#operation
    // A node without the connection has no result. Any other result is of another version: what was done there is not known.
    if (!(value === null && merge === null) && !result.Check(value)) return this.fail(from, new CommandFailed())
    if (value !== null && !this.#answered.has(from)) {
      this.#answered.add(from)
      this.#value = this.#value === null ? value : (merge?.(this.#value, value) ?? this.#value)
    }
    this.gone(from)
  }

  /** The node is not waited for any more. */
  gone (from: string): void {
    this.#awaited.delete(from)
    this.#decide()
  }

  fail (from: string, error: Error): void {
    if (this.#error === null || this.#error instanceof CommandFailed) this.#error = error
    this.gone(from)
  }

  /** Waits until it is decided, or time is up. */
  async end (timeoutMs: number, settlesInMs: number): Promise<Outcome<unknown>> {
    const timers = [setTimeout(() => this.#decided(), timeoutMs)]
    const settle = () => {
      this.#settled = true
      this.#decide()
    }
    await new Promise<void>(resolve => {
      this.#decided = resolve
      // Until this node has been greeted by those that were there before it, it does not know for whom to wait.
      if (settlesInMs > 0) timers.push(setTimeout(settle, settlesInMs))
      else this.#settled = true
      this.#decide()
    })
    timers.forEach(clearTimeout)
    if (this.#error !== null && !this.#isDecided()) throw this.#error
    return { value: this.#value, complete: !this.#waiting }
  }

  /** Nothing is waited for any more. */
  abort (error: Error): void {
    this.#error = error
    this.#decided()
  }

  /** Whether the node that has the connection has answered. */
  #isDecided (): boolean {
    return this.#operation.merge === null && this.#value !== null
  }

  #decide (): void {
    // A node that does not know the operation says nothing of the node that has the connection.
    const refused = this.#operation.merge === null && this.#error !== null && !(this.#error instanceof CommandFailed)
    if (!refused && !this.#isDecided() && !(this.#settled && this.#awaited.size === 0)) return
    this.#waiting = false
    this.#decided()
  }
}

function failed ({ code, message }: Error & { code: string }): Answer {
  return { error: { code, message } }
}
