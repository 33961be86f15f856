import type { GapReason } from '../log/broker.js'
import type { Report } from './node-message.js'

/** What this node had read of an epoch that it has left. */
interface Left {
  readonly epoch: string
  /** The newest command that a node is known to have read there. */
  command: number
  /** See `MissedCommands.#since`. */
  readonly since: number
}

/**
 * Up to where this node has read the commands in the log: what tells whether one that takes rights away may have been lost.
 * Within an epoch the broker knows, and often after one. Otherwise nodes that come from the old epoch tell each other what
 * they had read there. They know a command by its number: of two with one number, of which the log has lost one before all of it was lost, this tells nothing.
 */
export class MissedCommands {
  #epoch = ''
  /** This node read on from here: what was logged before concerns none of its connections. */
  #since = 0
  #newest = 0
  /** Null if it is known whether a command was lost with the last epoch. */
  #left: Left | null = null
  #missed = false

  /** What this node tells the others. */
  get left (): Report['left'] {
    return this.#left === null ? undefined : { epoch: this.#left.epoch, command: this.#left.command, into: this.#epoch }
  }

  open (epoch: string, position: number): void {
    this.#epoch = epoch
    this.#since = position
    this.#newest = 0
  }

  heard (seq: number): void {
    this.#newest = seq
  }

  /**
   * The log goes on at `position`. Returns whether a command may have been lost.
   * @param kept see `Sink.gap`.
   */
  moved (epoch: string, position: number, reason: GapReason, kept: boolean | undefined): boolean {
    if (reason === 'epoch') {
      this.#left = kept === undefined ? { epoch: this.#epoch, command: this.#newest, since: this.#since } : null
      this.#missed = false
      this.open(epoch, position)
      return kept === false
    }
    if (kept !== true) this.#since = position
    return kept !== true
  }

  /** Another node says what it had read when it left an epoch. Returns whether this node has missed a command there; once. */
  missed (other: Report['left']): boolean {
    const own = this.#left
    // A node in another epoch is late, or this one is: the other says it again when both are in the same. An older version does
    // not say into which epoch it has gone: such a report is ignored.
    if (other === undefined || own === null || other.into !== this.#epoch) return false
    if (other.epoch === own.epoch) {
      if (other.command <= Math.max(own.command, own.since)) return false
      own.command = other.command
    }
    // If the epochs differ, one of the two nodes has skipped an epoch, and nobody knows which of them.
    const first = !this.#missed
    this.#missed = true
    return first
  }
}
