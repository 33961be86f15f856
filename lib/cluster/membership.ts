import { MAX_BEAT_MS, type Report } from './node-message.js'
import type { Clock, Timer } from '../util/clock.js'

/** A node that is not heard of for this many of its own beats is gone. */
const MISSED_BEATS = 3.5
/** Beats are spread by a fifth to both sides, so that nodes do not all speak at once. */
const SPREAD = 0.2

interface Member {
  report: Report
  /** By this node's clock, in milliseconds since the epoch. */
  heardAt: number
  /** Time for which this node has listened and not heard of it, in milliseconds. */
  silentMs: number
}

export interface MembershipEvents {
  /** It is time to tell the others that this node lives. Resolves once it has been said. */
  beat (): Promise<void>
  gone (nodeId: string): void
}

/** The other nodes that live, as far as this one has heard. */
export class Membership {
  readonly #clock: Clock
  readonly #everyMs: number
  readonly #events: MembershipEvents
  readonly #members = new Map<string, Member>()
  /** Nodes that were noticed without a report, and how long ago, in milliseconds for which this node has listened. */
  readonly #strangers = new Map<string, number>()
  #timer: Timer | null = null
  #listening = true
  #listenedMs = 0

  constructor (clock: Clock, everyMs: number, events: MembershipEvents) {
    this.#clock = clock
    this.#everyMs = everyMs
    this.#events = events
  }

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

  stop (): void {
    this.#clock.cancel(this.#timer)
    this.#timer = null
  }

  /** Whether what the others say arrives here. While it does not, their silence says nothing. */
  listen (listening: boolean): void {
    this.#listening = listening
    if (listening) for (const member of this.#members.values()) member.silentMs = 0
  }

  /** A node that has not reported, or was taken for dead, has said something. Unless it reports, it is gone in the end. */
  noticed (nodeId: string): void {
    if (!this.#members.has(nodeId)) this.#strangers.set(nodeId, 0)
  }

  /** Takes what a node says of itself. */
  heard (report: Report): void {
    this.#strangers.delete(report.nodeId)
    this.#members.set(report.nodeId, { report, heardAt: this.#clock.wall(), silentMs: 0 })
  }

  remove (nodeId: string): void {
    const known = [this.#members, this.#strangers].filter(nodes => nodes.delete(nodeId)).length > 0
    if (known) this.#events.gone(nodeId)
  }

  /** Whether this node has listened for so long that each other that lived has been heard: one that is new here has come, or come back. */
  get established (): boolean {
    return this.#listenedMs > this.#everyMs * MISSED_BEATS
  }

  ids (): IterableIterator<string> {
    return this.#members.keys()
  }

  all (): IterableIterator<Member> {
    return this.#members.values()
  }

  /** Counts this node's own beats, not the clock: for a process that was frozen no time has passed in which it could have heard. */
  #age (ms: number): void {
    if (!this.#listening) return
    this.#listenedMs += ms
    for (const [nodeId, member] of this.#members) {
      member.silentMs += ms
      // Time passes here in steps of this node's own interval.
      if (member.silentMs > Math.max(member.report.everyMs, this.#everyMs) * MISSED_BEATS) this.remove(nodeId)
    }
    for (const [nodeId, silentMs] of this.#strangers) {
      this.#strangers.set(nodeId, silentMs + ms)
      // How often it reports is not known.
      if (silentMs + ms > MAX_BEAT_MS * MISSED_BEATS) this.remove(nodeId)
    }
  }
}
