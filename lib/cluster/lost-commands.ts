import type { GapReason } from '../log/broker.js'
import type { Report } from './node-message.js'

/** The commands that this node had read of an earlier epoch. */
interface Left {
  readonly epoch: string
  /** Sequence number of the newest command in it that any node is known to have read. */
  command: number
  /** See `LostCommands.#since`. */
  readonly since: number
}

/**
 * Tracks the commands that this node has read in the log, to detect the loss of a command that revokes rights. Within an epoch the broker
 * reports a loss, and often for a new epoch too. Otherwise nodes compare the newest command that each had read in the old epoch.
 * Commands are compared by sequence number. So a loss is not detected if the log had reused the number of the lost command.
 */
export class LostCommands {
  #epoch = ''
  /** Position from which this node reads. Earlier commands do not concern its connections. */
  #since = 0
  #newest = 0
  /** The last epoch; null if the broker has reported whether a command was lost with it. */
  #left: Left | null = null
  #missed = false

  /** The part of the report that other nodes compare with their own; undefined if there is nothing to compare. */
  get left (): Report['left'] {
    return this.#left === null ? undefined : { epoch: this.#left.epoch, command: this.#left.command, into: this.#epoch }
  }

  /** Starts at a position of an epoch. */
  open (epoch: string, position: number): void {
    this.#epoch = epoch
    this.#since = position
    this.#newest = 0
  }

  /** Records the sequence number of a command that was read. */
  heard (seq: number): void {
    this.#newest = seq
  }

  /**
   * Handles lost continuity of the log, which continues at `position`. Returns whether a command may have been lost.
   * @param kept see `Sink.gap`
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

  /** Compares with the report of another node. Returns true, once for each epoch, if this node has missed a command. */
  missed (other: Report['left']): boolean {
    const own = this.#left
    // If the current epochs differ, one node is late, and the report is repeated later. Reports of older versions do not contain
    // the current epoch and are ignored.
    if (other === undefined || own === null || other.into !== this.#epoch) return false
    if (other.epoch === own.epoch) {
      if (other.command <= Math.max(own.command, own.since)) return false
      own.command = other.command
    }
    // If the earlier epochs differ, one of the two nodes has skipped an epoch, and it is not known which one.
    const first = !this.#missed
    this.#missed = true
    return first
  }
}
