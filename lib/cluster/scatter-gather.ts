import type { ArgumentsOf, Command, Commands, ResultOf } from './commands.js'
import { Closed, CommandFailed, reviveError, SSEError, TooManyCommands } from '../errors.js'
import type { Log } from '../util/logger.js'
import type { NodeDelivery } from '../log/event-log.js'
import type { MessageOf, Saying } from './node-message.js'

/** Maximum number of commands of this node that wait for answers. */
const MAX_PENDING = 1_000
/** Number of times that a command is sent to a node within the answer timeout. */
const ATTEMPTS = 4
/** Maximum number of repeated commands that are being sent: repeats must not delay the answers. */
const MAX_REPEATS = 32
/** Maximum number of answers that are kept for repeated commands. */
const MAX_ANSWERS = 10_000

/** The functions of the node that this file uses. */
export interface ScatterHost {
  /** Whether other nodes can exist. */
  readonly shared: boolean
  /** Option `cluster.answerTimeoutMs`. */
  readonly answerTimeoutMs: number
  /** Returns the ids of the other living nodes. */
  others (): Iterable<string>
  /** Returns the time in milliseconds until all other living nodes are known. */
  settlesInMs (): number
  /** Publishes a message to all nodes. Rejects if the log is unreachable. */
  say (saying: Saying, delivery: NodeDelivery): Promise<void>
}

/** The combined results of the nodes. */
export interface Outcome<R> {
  /** The result; null if no node has the connection. */
  readonly value: R | null
  /** Whether all nodes have answered, or the result is decided without the others. */
  readonly complete: boolean
  /** Ids of the nodes that have not answered, or could not. */
  readonly unanswered: readonly string[]
}

type Answer = { value: unknown } | { error: { code: string, message: string } }

/**
 * Runs operations on this node and on all others, and gathers the results. Commands are repeated until all nodes have answered or time
 * is up. A node runs a command once: it recognises a repeated one by sender and id.
 */
export class ScatterGather {
  readonly #operations: Commands
  readonly #host: ScatterHost
  readonly #log: Log
  readonly #pending = new Map<number, Gathering>()
  /** Answers of this node to commands that may be repeated, oldest first. */
  readonly #answers = new Map<string, Promise<Answer>>()
  #asked = 0
  #repeats = 0

  constructor (operations: Commands, host: ScatterHost, log: Log) {
    this.#operations = operations
    this.#host = host
    this.#log = log
  }

  /**
   * Runs an operation. An operation on one connection runs on this node first, and on the others only if this node does not have it. All
   * other operations run on all nodes at the same time. Resolves when the result is decided, or with `complete: false` after the timeout.
   * @throws the errors of the operation on any node, SSE_ERR_BROKER_UNAVAILABLE, SSE_ERR_TOO_MANY_COMMANDS, SSE_ERR_CLOSED
   */
  async ask<N extends keyof Commands> (name: N, ...args: ArgumentsOf<N>): Promise<Outcome<ResultOf<N>>> {
    const operation = this.#operations[name] as unknown as Command
    const running = operation.run(...args)
    // The other nodes start at once, because code of the application can take long on this node.
    const asked = this.#host.shared && operation.merge !== null ? this.#askOthers(name, operation, args) : null
    asked?.catch(() => {})
    const own = await running
    if (asked !== null) {
      const { value, ...rest } = await asked
      return { value: value === null ? own : operation.merge!(own, value), ...rest } as Outcome<ResultOf<N>>
    }
    const outcome = !this.#host.shared || own !== null ? { value: own, complete: true, unanswered: [] } : await this.#askOthers(name, operation, args)
    return outcome as Outcome<ResultOf<N>>
  }

  async #askOthers (name: string, operation: Command, args: unknown[]): Promise<Outcome<unknown>> {
    if (this.#pending.size >= MAX_PENDING) throw new TooManyCommands(MAX_PENDING)
    const id = ++this.#asked
    const command = { kind: 'command', id, operation: name, args } as const
    const { answerTimeoutMs } = this.#host
    const say = (): Promise<void> => this.#host.say(command, DELIVERY[operation.effect])
    const gathering = new Gathering(operation, this.#host.others(), say)
    this.#pending.set(id, gathering)
    // A repeated `revoke` is not logged again: the node reads the first one in the log, so only its answer can be missing.
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

  /** Sends unanswered logged commands again, after the log has lost its continuity. */
  again (): void {
    for (const gathering of this.#pending.values()) gathering.again()
  }

  /** Runs a command of another node once, and sends the answer. */
  async obey (command: MessageOf<'command'>): Promise<void> {
    const { from: to, id, operation: name } = command
    const answer = this.#answer(command)
    if (answer === null) return
    this.#host.say({ kind: 'answer', to, id, ...await answer }, 'apart').catch(err => {
      this.#log.debug({ err, operation: name }, 'A command of another node could not be answered')
    })
  }

  /** Returns the answer to a command; null for a repeated `revoke` that this node has not read in the log yet. */
  #answer ({ from, id, operation: name, args, to }: MessageOf<'command'>): Promise<Answer> | null {
    const operation = Object.hasOwn(this.#operations, name) ? this.#operations[name as keyof Commands] as unknown as Command : null
    if (operation?.args.Check(args) !== true) {
      this.#log.warn({ operation: name, nodeId: from }, 'Another node runs another version and requests an unknown operation')
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
      // The cause is logged here and not sent: it can contain secrets.
      if (!(err instanceof SSEError) || err.statusCode >= 500) this.#log.error({ err, operation: name }, 'A command of another node failed')
      return failed(err instanceof SSEError ? err : new CommandFailed())
    }
  }

  /** Handles the answer of another node. */
  answered ({ from, id, value = null, error }: MessageOf<'answer'>): void {
    const gathering = this.#pending.get(id)
    if (gathering === undefined) return
    if (error !== undefined) gathering.fail(from, reviveError(error.code, error.message))
    else gathering.answered(from, value)
  }

  /** Stops waiting for a node that has ended. */
  gone (nodeId: string): void {
    for (const gathering of this.#pending.values()) gathering.gone(nodeId)
  }

  /** Rejects all pending commands with SSE_ERR_CLOSED. */
  close (): void {
    for (const gathering of this.#pending.values()) gathering.abort(new Closed())
  }
}

const DELIVERY = { ask: 'apart', change: 'ordered', revoke: 'logged' } as const satisfies Record<Command['effect'], NodeDelivery>

/** Gathers the answers to one command. */
class Gathering {
  readonly #operation: Command
  readonly #awaited: Set<string>
  /** Nodes whose result is included: a node can answer a repeated command twice. */
  readonly #answered = new Set<string>()
  /** Nodes that could not answer a question. */
  readonly #failed = new Set<string>()
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

  /** Sends a logged command again. */
  again (): void {
    if (this.#operation.effect === 'revoke') this.#say().catch(() => {})
  }

  /** Adds the result of a node. */
  answered (from: string, value: unknown): void {
    const { merge, result } = this.#operation
    // Null: the node does not have the connection. An invalid result is from another version, and its effect there is not known.
    if (!(value === null && merge === null) && !result.Check(value)) return this.fail(from, new CommandFailed())
    if (value !== null && !this.#answered.has(from)) {
      this.#answered.add(from)
      this.#value = this.#value === null ? value : (merge?.(this.#value, value) ?? this.#value)
    }
    this.gone(from)
  }

  /** Stops waiting for a node. */
  gone (from: string): void {
    this.#awaited.delete(from)
    this.#decide()
  }

  /** Records the error of a node. */
  fail (from: string, error: Error): void {
    // A question is answered without the node, as if it were silent: a node of another version does not know all questions.
    if (this.#operation.effect === 'ask') this.#failed.add(from)
    else if (this.#error === null || this.#error instanceof CommandFailed) this.#error = error
    this.gone(from)
  }

  /** Waits until the result is decided, or time is up. */
  async end (timeoutMs: number, settlesInMs: number): Promise<Outcome<unknown>> {
    const timers = [setTimeout(() => this.#decided(), timeoutMs)]
    const settle = () => {
      this.#settled = true
      this.#decide()
    }
    await new Promise<void>(resolve => {
      this.#decided = resolve
      // A new node does not know yet for which nodes to wait.
      if (settlesInMs > 0) timers.push(setTimeout(settle, settlesInMs))
      else this.#settled = true
      this.#decide()
    })
    timers.forEach(clearTimeout)
    if (this.#error !== null && !this.#isDecided()) throw this.#error
    return { value: this.#value, complete: !this.#waiting && this.#failed.size === 0, unanswered: [...this.awaited, ...this.#failed] }
  }

  /** Ends the wait with an error. */
  abort (error: Error): void {
    this.#error = error
    this.#decided()
  }

  /** Returns whether the node that has the connection has answered. */
  #isDecided (): boolean {
    return this.#operation.merge === null && this.#value !== null
  }

  #decide (): void {
    // SSE_ERR_COMMAND_FAILED of one node does not decide: another node can have the connection.
    const refused = this.#operation.merge === null && this.#error !== null && !(this.#error instanceof CommandFailed)
    if (!refused && !this.#isDecided() && !(this.#settled && this.#awaited.size === 0)) return
    this.#waiting = false
    this.#decided()
  }
}

function failed ({ code, message }: Error & { code: string }): Answer {
  return { error: { code, message } }
}
