import type { GapReason } from '../log/broker.js'
import type { Report } from './node-message.js'

/**
 * Up to where this node has read the commands in the log: what tells whether one that takes rights away may have been lost.
 * Within an epoch the broker knows. With an epoch the log itself is lost: what another node has read of it, and this one
 * has not, is known once they tell each other.
 */
export class CommandsHeard {
  #epoch = ''
  /** This node read on from here: what was logged before concerns none of its connections. */
  #since = 0
  #newest = 0
  #left: { epoch: string, command: number, since: number } | null = null

  /** What this node tells the others. */
  get left (): Report['left'] {
    return this.#left === null ? undefined : { epoch: this.#left.epoch, command: this.#left.command }
  }

  open (epoch: string, position: number): void {
    this.#epoch = epoch
    this.#since = position
    this.#newest = 0
  }

  heard (seq: number): void {
    this.#newest = seq
  }

  /** The log goes on at `position`. Returns whether a command may have been lost. */
  moved (epoch: string, position: number, reason: GapReason, kept: boolean): boolean {
    if (reason === 'epoch') {
      this.#left = { epoch: this.#epoch, command: this.#newest, since: this.#since }
      this.open(epoch, position)
      return false
    }
    if (!kept) this.#since = position
    return !kept
  }

  /** Another node says what it had read when it left an epoch. Returns whether this node has missed a command there; once. */
  missed (left: Report['left']): boolean {
    if (left === undefined || this.#left === null || left.epoch !== this.#left.epoch) return false
    if (left.command <= Math.max(this.#left.command, this.#left.since)) return false
    this.#left.command = left.command
    return true
  }
}
