import { assertEventName, textOfData } from '../events/event-rules.js'
import type { ItemDecoder } from '../streams/item-decoder.js'
import { eventOf, type SourceEvent, type SourceItem, type SourcePart } from '../streams/source.js'
import { encodeEvent } from '../wire/event-stream.js'

/** An item of the source of a run: as those of a stream, without ids and reconnection times of its own. */
export type RunItem = string | Uint8Array | Omit<SourceEvent, 'id' | 'retry'> | SourcePart

const KEYS: ReadonlySet<string> = new Set(['event', 'data'])
const YIELDS = 'a run yields strings, bytes, { event?, data } or objects with a type, and its events get their ids from the run'

/** Encodes an item without its id. Returns null for text of which no character is complete, which the decoder keeps. */
export function textOf (item: SourceItem, decoder: ItemDecoder): string | null {
  if (typeof item === 'string' || item instanceof Uint8Array) return textOfDecoded(decoder.decode(item))
  const { event = 'message', data } = eventOf(item, KEYS, YIELDS)
  assertEventName(event)
  return encodeEvent(event, textOfData(data))
}

/** Encodes decoded text; null for none. */
export function textOfDecoded (text: string | null): string | null {
  return text === null ? null : encodeEvent('message', textOfData(text))
}
