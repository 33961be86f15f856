import { MAX_BEAT_MS, type Report } from './node-message.js'
import type { Clock, Timer } from '../util/clock.js'
import type { Log } from '../util/logger.js'

/** A node is removed after this number of its heartbeat intervals without a report. */
const MISSED_BEATS = 3.5
/** Random part of the heartbeat interval in both directions, so that nodes do not report at the same time. */
const SPREAD = 0.2

interface Member {
  report: Report
  /** Time of the last report in milliseconds since the Unix epoch, by the clock of this node. */
  heardAt: number
  /** Time without a report in milliseconds, while this node could receive reports. */
  silentMs: number
}

/** Receives the events of a membership. */
export interface MembershipEvents {
  /** Sends a heartbeat to the other nodes. Resolves when it is sent. */
  beat (): Promise<void>
  /** Handles the removal of a node. */
  gone (nodeId: string): void
}

/** Tracks the other living nodes by their reports. */
export class Membership {
  readonly #clock: Clock
  readonly #everyMs: number
  readonly #events: MembershipEvents
  readonly #log: Log
  readonly #members = new Map<string, Member>()
  /** Nodes that sent a message but no report, with the time since then in milliseconds, while this node could receive reports. */
  readonly #strangers = new Map<string, number>()
  #timer: Timer | null = null
  #listening = true
  #listenedMs = 0

  constructor (clock: Clock, everyMs: number, events: MembershipEvents, log: Log) {
    this.#clock = clock
    this.#everyMs = everyMs
    this.#events = events
    this.#log = log
  }

  /** Starts the heartbeats. */
  start (): void {
    const ms = Math.round(this.#everyMs * (1 - SPREAD + 2 * SPREAD * Math.random()))
    this.#timer = this.#clock.after(ms, () => {
      this.#age(ms)
      const told = this.#events.beat()
      this.start()
      return told
    })
    this.#timer.unref()
  }

  /** Stops the heartbeats. */
  stop (): void {
    this.#clock.cancel(this.#timer)
  }

  /** Sets whether this node can receive reports. While it cannot, missing reports do not count. */
  listen (listening: boolean): void {
    this.#listening = listening
    if (listening) for (const member of this.#members.values()) member.silentMs = 0
  }

  /** Records a message of a node without a report, for example of a node that was removed. It is removed later unless it reports. */
  noticed (nodeId: string): void {
    if (!this.#members.has(nodeId)) this.#strangers.set(nodeId, 0)
  }

  /** Records the report of a node. */
  heard (report: Report): void {
    if (!this.#members.has(report.nodeId)) this.#log.info(factsOf(report), 'Another node has appeared')
    this.#strangers.delete(report.nodeId)
    this.#members.set(report.nodeId, { report, heardAt: this.#clock.wall(), silentMs: 0 })
  }

  /** Records that a node has closed. */
  closed (nodeId: string): void {
    const member = this.#members.get(nodeId)
    if (member !== undefined) this.#log.info(factsOf(member.report), 'Another node has closed')
    this.#remove(nodeId)
  }

  /** Removes a node, and calls `gone` if it was known. */
  #remove (nodeId: string): void {
    const known = [this.#members, this.#strangers].filter(nodes => nodes.delete(nodeId)).length > 0
    if (known) this.#events.gone(nodeId)
  }

  /** Whether this node has listened so long that every living node has reported. A node that appears later has started or returned. */
  get established (): boolean {
    return this.#listenedMs > this.#everyMs * MISSED_BEATS
  }

  /** Iterates over the ids of the living nodes, without this one. */
  ids (): IterableIterator<string> {
    return this.#members.keys()
  }

  /** Iterates over the living nodes, without this one. */
  all (): IterableIterator<Member> {
    return this.#members.values()
  }

  /** Adds one interval instead of clock time: while a process is frozen, it cannot receive reports. */
  #age (ms: number): void {
    if (!this.#listening) return
    this.#listenedMs += ms
    for (const [nodeId, member] of this.#members) {
      member.silentMs += ms
      // Time advances in steps of this node's own interval, so a shorter interval of the other node cannot be measured.
      if (member.silentMs <= Math.max(member.report.everyMs, this.#everyMs) * MISSED_BEATS) continue
      this.#log.warn({ ...factsOf(member.report), silentMs: member.silentMs }, 'Another node does not report and is taken for dead')
      this.#remove(nodeId)
    }
    for (const [nodeId, silentMs] of this.#strangers) {
      this.#strangers.set(nodeId, silentMs + ms)
      // The interval of the node is not known, so the longest one is assumed.
      if (silentMs + ms > MAX_BEAT_MS * MISSED_BEATS) this.#remove(nodeId)
    }
  }
}

/** Returns what is logged about a node. */
function factsOf ({ nodeId, name, connections }: Report): object {
  return { nodeId, nodeName: name, connections }
}
