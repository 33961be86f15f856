import t from 'tap'
import { FrameCache } from '../../lib/delivery/frame-cache.js'
import { Frame, FRAME_BYTES } from '../../lib/delivery/frame.js'
import { EventPriority } from '../../lib/events/event-rules.js'
import type { Message } from '../../lib/events/message.js'

const MB = 1024 * 1024
const message = (seq: number, data = 'x'): Message => ({ event: 'x', data, priority: EventPriority.NORMAL, target: {}, ephemeral: false, seq })
/** A message whose frame counts as a megabyte: half a generation of the cache. */
const half = (seq: number): Message => message(seq, 'x'.repeat(MB - FRAME_BYTES - Frame.ofMessage(message(seq, ''), 'a').bytes))

/** Asks for frames in this order, and tells which of them are the same as before. */
function ask (cache: FrameCache, frames: Map<number, Frame>, epoch: string, ...seqs: number[]): boolean[] {
  return seqs.map(seq => {
    const frame = cache.of(half(seq), epoch)
    const isSame = frames.get(seq) === frame
    frames.set(seq, frame)
    return isSame
  })
}

t.test('two generations of two megabytes are kept, and what is used stays', async t => {
  const cache = new FrameCache()
  const frames = new Map<number, Frame>()
  t.same(ask(cache, frames, 'a', 1, 2, 1, 2), [false, false, true, true], 'a full generation')
  t.same(ask(cache, frames, 'a', 3, 1, 3, 1), [false, true, true, true], 'the older one is kept, and 1 was used')
  t.same(ask(cache, frames, 'a', 4, 3, 1), [false, true, true])
  t.same(ask(cache, frames, 'a', 5), [false])
  t.same(ask(cache, frames, 'a', 2, 4), [false, false], 'those that were not used are gone')
  t.equal(frames.get(5)!.bytes + FRAME_BYTES, MB)
})

t.test('a frame that is larger than a generation is kept until the next one', async t => {
  const cache = new FrameCache()
  const large = message(1, 'x'.repeat(3 * MB))
  const frame = cache.of(large, 'a')
  t.equal(cache.of(large, 'a'), frame)
  cache.of(message(2), 'a')
  t.equal(cache.of(large, 'a'), frame)
})

t.test('another epoch begins anew: the same number is another message', async t => {
  const cache = new FrameCache()
  const frames = new Map<number, Frame>()
  ask(cache, frames, 'a', 1, 2, 3)
  t.same(ask(cache, frames, 'b', 3, 2, 1), [false, false, false])
  for (const [seq, frame] of frames) t.equal(frame.head, `id: b.${seq}\n`)
})

t.test('what was in the generation of the epoch before does not count', async t => {
  for (const before of [[1], [1, 2], [1, 2, 3]]) {
    const cache = new FrameCache()
    const frames = new Map<number, Frame>()
    ask(cache, frames, 'a', ...before)
    ask(cache, frames, 'b', 1, 2, 3, 4)
    t.same(ask(cache, frames, 'b', 1), [true], `${before}`)
  }
})
