import type { Test } from 'tap'
import { Backlog } from '../../lib/connections/backlog.js'
import { ConnectionContext } from '../../lib/connections/context.js'
import { Snapshot, type SnapshotHost, type SnapshotPlan } from '../../lib/connections/snapshot.js'
import type { SnapshotSource } from '../../lib/connections/snapshot-loads.js'
import { Frame, textOf } from '../../lib/delivery/frame.js'
import type { Turns } from '../../lib/delivery/replay-scheduler.js'
import { Telemetry } from '../../lib/diagnostics/telemetry.js'
import { EventPriority } from '../../lib/events/event-rules.js'
import type { Message } from '../../lib/events/message.js'
import type { Target } from '../../lib/events/target.js'
import { EventLog } from '../../lib/log/event-log.js'
import type { SSEOptions } from '../../lib/index.js'
import { resolveOptions } from '../../lib/options.js'
import { testClock, testLog } from '../../lib/testing/index.js'
import { Reports } from '../helpers/diagnostics.js'
import { recorder } from '../helpers/logged.js'
import { turns } from '../helpers/wait.js'

/** Time without a limit. */
export const AMPLE = { over: false } as Turns

/** The parts that the connections of a node share, on a log in memory, and clients without sockets. */
export class Fixture {
  readonly clock = testClock()
  readonly log = testLog()
  readonly broker = this.log.broker()
  readonly recorder = recorder()
  readonly telemetry = new Telemetry(`node ${Math.random()}`)
  readonly reports: Reports
  readonly eventLog: EventLog
  readonly context: ConnectionContext
  readonly clients = new Set<Client>()

  private constructor (t: Test, given: SSEOptions) {
    const options = resolveOptions({ ...given, ...this.clock.options })
    const { broker, telemetry, recorder: { log } } = this
    this.reports = new Reports(t, () => telemetry.nodeId)
    this.eventLog = new EventLog(broker, options, {
      opened () {},
      told () {},
      state () {},
      deliver: (message, epoch) => {
        const frame = Frame.ofMessage(message, epoch, true)
        for (const client of this.clients) client.receive(frame)
        return this.clients.size
      },
      gap: reason => { for (const { backlog } of this.clients) backlog.invalidate(reason) }
    }, log)
    this.context = new ConnectionContext({ options, log, telemetry, broker, eventLog: this.eventLog, audience: null as never, subscriptions: null as never, onEnd () {} })
  }

  static async create (t: Test, options: SSEOptions = {}): Promise<Fixture> {
    const fixture = new Fixture(t, options)
    await fixture.eventLog.open()
    t.teardown(() => fixture.eventLog.close())
    return fixture
  }

  /** Publishes an event with this text. */
  async publish (data: string, { priority = EventPriority.NORMAL, ephemeral = false, ...rest }: Partial<Message> = {}): Promise<void> {
    await this.eventLog.append({ event: 'message', data, priority, ephemeral, target: {}, seq: 0, ...rest })
  }

  /** The cursor of a client that has received all lanes up to these numbers. */
  cursor (...lanes: number[]): string {
    return `${this.log.epoch}.${lanes.map(seq => seq.toString(36)).join('~')}`
  }

  get used (): number {
    return this.context.budget.used
  }
}

/** A client: what its connection does with frames, in steps that a test chooses. */
export class Client implements SnapshotHost {
  readonly clientId: string
  readonly userId = null
  readonly held = new Set<string>(['a'])
  readonly subscriptions = this.held
  isConnected = true
  blocked = true
  lastWriteAt = 0
  wants: (message: Message) => boolean = () => true
  /** What was called, in order. */
  readonly calls: string[] = []
  readonly backlog: Backlog
  readonly #fixture: Fixture

  constructor (fixture: Fixture, clientId = 'ada') {
    this.clientId = clientId
    this.#fixture = fixture
    this.backlog = new Backlog(fixture.context, this)
    fixture.clients.add(this)
  }

  /** Begins at a cursor. With a source, it can be written to, and receives snapshots. */
  begin (cursor: string | null, source?: Partial<SnapshotSource>, plan: Partial<SnapshotPlan> = {}): this {
    const { context } = this.#fixture
    if (source === undefined) this.backlog.begin(cursor, null, this)
    else {
      this.blocked = false
      const snapshot = new Snapshot(context, this, this.backlog, { source: { load: () => null, timeoutMs: 10_000, maxConcurrent: 16, ...source }, fresh: [], failures: 0, ...plan }, cursor)
      this.backlog.begin(cursor, snapshot, this)
      snapshot.open()
    }
    return this
  }

  receive (frame: Frame): boolean {
    return this.backlog.receive(frame, this.blocked)
  }

  /** Sends an event to this client only. */
  send (data: string, priority: EventPriority = EventPriority.NORMAL, target: Target | null = null): boolean {
    return this.receive(new Frame('', `data: ${data}\n\n`, priority, 0, null, target))
  }

  /** Reads a page of the log. */
  async read (turns = AMPLE): Promise<void> {
    await this.backlog.readPage(this.#fixture.broker, turns, this, message => this.wants(message))
  }

  /** Takes what one write would carry: text and id of each block. */
  take (bytes = Infinity): string[] {
    const { epoch } = this.#fixture.log
    const text = textOf(this.backlog.takeBatch()?.frames ?? []) + (this.backlog.take(bytes)?.text ?? '')
    return text.split('\n\n').slice(0, -1).map(block => {
      const [, event] = /^event: (.*)$/m.exec(block) ?? []
      const [, data] = /^data: (.*)$/m.exec(block) ?? []
      const [, id] = /^id: (.*)$/m.exec(block) ?? []
      return [event?.startsWith('sse:') === true ? event : data, id?.replace(`${epoch}.`, '')].filter(part => part !== undefined).join(' ')
    })
  }

  /** Reads and takes until nothing is left. */
  async drain (): Promise<string[]> {
    const all: string[] = []
    for (let rounds = 0; ; rounds++) {
      if (rounds > 1_000) throw new Error('It never comes to the end')
      const taken = this.take()
      all.push(...taken)
      this.backlog.settle()
      if (this.backlog.wantsPage) await this.read()
      else if (taken.length === 0) return all
    }
  }

  leave (): void {
    this.isConnected = false
    this.#fixture.clients.delete(this)
    this.backlog.clear()
  }

  // --- As a host of snapshots ---

  onLoadStarted (position: number): void {
    this.calls.push(`started ${position}`)
    this.backlog.hold(position)
  }

  onLoaded (): void {
    this.calls.push('loaded')
  }

  onLoadFailed (): void {
    this.calls.push('failed')
  }

  giveWay (): void {
    this.calls.push('gave way')
    this.leave()
  }
}

/** A source whose loads end when a test ends them. */
export function source (key?: string) {
  const questions: { subscriptions: readonly string[], reason: string, signal: AbortSignal }[] = []
  const ends: ((result: unknown) => void)[] = []
  const load = (question: never): Promise<unknown> => {
    questions.push(question)
    return new Promise((resolve, reject) => { ends.push(result => result instanceof Error ? reject(result) : resolve(result)) })
  }
  return {
    source: { load, ...(key !== undefined && { key }) } satisfies Partial<SnapshotSource>,
    questions,
    /** What was asked, in order. */
    asked: () => questions.map(({ reason, subscriptions = [] }) => [reason, ...subscriptions].join(' ')),
    /** Ends the oldest call. */
    async end (result: unknown = { data: 'state' }) {
      ends.shift()!(result)
      await turns(1)
    }
  }
}
