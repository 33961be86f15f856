import { Buffer } from 'node:buffer'
import { bytesOfTarget, type Target } from '../events/target.js'
import { memoryBytes } from '../util/text.js'
import type { Held } from '../util/memory-budget.js'
import { type Message, conflationKey } from '../events/message.js'
import { formatCursor } from '../log/cursor.js'
import type { EventPriority } from '../events/event-rules.js'
import { encodeIdLine, encodeEvent } from '../wire/event-stream.js'

/** What a waiting frame takes beside its texts and its target, in bytes: objects, and its places in line. */
export const FRAME_BYTES = 400

/** The encoded form of one event, made once and shared by all connections of this node that get it. */
export class Frame implements Held {
  /** The `id:` line of delivery in log order, or of the application's own id; empty for an ephemeral event. */
  readonly head: string
  /** The rest of the block. */
  readonly text: string
  readonly priority: EventPriority
  /** Place in the log, 0 when there is none. */
  readonly seq: number
  /** See `conflationKey`. */
  readonly key: string | null
  /** Target of the message; null for a frame made for one connection. */
  readonly target: Target | null
  /** Of what is written: head and text. */
  readonly textBytes: number
  /** Of what is kept for as long as it waits: text, key and target. */
  readonly bytes: number
  /** Whether it has come through the log, in its order, ephemeral or not; what was made on this node for this node has not. */
  readonly fromLog: boolean
  holders = 0

  constructor (head: string, text: string, priority: EventPriority, seq = 0, key: string | null = null, target: Target | null = null, textBytes = Buffer.byteLength(text), fromLog = false) {
    this.head = head
    this.text = text
    this.priority = priority
    this.seq = seq
    this.key = key
    this.target = target
    this.fromLog = fromLog
    this.textBytes = head.length + textBytes
    this.bytes = head.length + memoryBytes(text.length, textBytes) + (key === null ? 0 : key.length) + (target === null ? 0 : bytesOfTarget(target))
  }

  static ofMessage (message: Message, epoch: string, fromLog = message.seq > 0): Frame {
    const { event, data, priority, seq, target, retry } = message
    const head = seq === 0 ? '' : encodeIdLine(formatCursor(epoch, seq))
    const text = encodeEvent(event, data, retry)
    // The text itself would have to be made one string to be measured; what is in it beside name and data is ASCII.
    const bytes = text.length + Buffer.byteLength(event) - event.length + Buffer.byteLength(data) - data.length
    return new Frame(head, text, priority, seq, conflationKey(message), target, bytes, fromLog)
  }
}
