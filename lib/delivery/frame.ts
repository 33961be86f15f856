import { Buffer } from 'node:buffer'
import { bytesOfTarget, type Target } from '../events/target.js'
import { memoryBytes, ownText } from '../util/text.js'
import type { Held } from '../util/memory-budget.js'
import { type Message, conflationKey } from '../events/message.js'
import { formatCursor } from '../log/cursor.js'
import type { EventPriority } from '../events/event-rules.js'
import { encodeIdLine, encodeEvent } from '../wire/event-stream.js'

/** Memory of a queued frame in bytes, beside its texts and its target: its objects and queue entries. */
export const FRAME_BYTES = 400

/** The encoded form of one event, made once and shared by all connections of this node that receive it. */
export class Frame implements Held {
  /** The `id:` line: the cursor for delivery in log order, or an id of the application; empty for an ephemeral event. */
  readonly head: string
  /** The other lines of the event. */
  readonly text: string
  /** Priority of the event. */
  readonly priority: EventPriority
  /** Sequence number in the log; 0 for an event that is not logged. */
  readonly seq: number
  /** See `conflationKey`. */
  readonly key: string | null
  /** Target of the message; null for a frame made for one connection. */
  readonly target: Target | null
  /** Size of head and text in bytes, as they are written. */
  readonly textBytes: number
  /** Memory of head, text, key and target in bytes. */
  readonly bytes: number
  /** Whether the message was delivered by the broker, in log order, ephemeral or not. False for frames made on this node for this node. */
  readonly fromLog: boolean
  /** Number of current holders. Only the budget changes it. */
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

  /** Returns the same frame with a text that references no other string. */
  withOwnText (): Frame {
    const { head, text, priority, seq, key, target, textBytes, fromLog } = this
    return new Frame(head, ownText(text), priority, seq, key, target, textBytes - head.length, fromLog)
  }

  /** Encodes a message. */
  static ofMessage (message: Message, epoch: string, fromLog = message.seq > 0): Frame {
    const { event, data, priority, seq, target, retry } = message
    const head = seq === 0 ? '' : encodeIdLine(formatCursor(epoch, seq))
    const text = encodeEvent(event, data, retry)
    return new Frame(head, text, priority, seq, conflationKey(message), target, sizeOfEvent(text, event, data), fromLog)
  }
}

/** Returns frames as one text. */
export function textOf (frames: readonly Frame[]): string {
  let text = ''
  for (const frame of frames) text += frame.head + frame.text
  return text
}

/**
 * Returns the size of an encoded event in bytes. Measuring `text` would flatten the string. Everything in it except name and data is
 * ASCII, so those are measured instead.
 */
export function sizeOfEvent (text: string, event: string, data: string): number {
  return text.length + Buffer.byteLength(event) - event.length + Buffer.byteLength(data) - data.length
}
