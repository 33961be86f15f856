import t from 'tap'
import { EventParser } from '../../lib/client/event-parser.js'

t.test('the parser reads by the letter of the specification, wherever the text is cut', async t => {
  const text = '\uFEFF: first\r\n\r\nevent: a\rdata: 1\rdata\rid: 7\r\rdata:  2\nid\n\nid: 8\nevent: lost\n\n:\ndata:{"x":[1]}\nretry: 100\nretry: 1s\nretry:\nid: 9\0\nunknown: 1\n\n\ndata: unfinished\n'
  const wanted = [
    'comment first', 'id 7', { event: 'a', data: '1\n', id: '7' }, 'id ', { event: 'message', data: ' 2', id: '' }, 'id 8',
    'comment ', 'retry 100', { event: 'message', data: '{"x":[1]}', id: null }
  ]
  for (const size of [1, 2, 3, 5, text.length]) {
    const seen: unknown[] = []
    const parser = new EventParser({
      event: event => { seen.push(event) },
      comment: text => { seen.push(`comment ${text}`) },
      retry: ms => { seen.push(`retry ${ms}`) },
      lastEventId: id => { seen.push(`id ${id}`) }
    })
    for (let at = 0; at < text.length; at += size) parser.push(text.slice(at, at + size))
    t.strictSame(seen, wanted, `pieces of ${size}`)
  }
})

t.test('a long line in many parts', async t => {
  const events: string[] = []
  const parser = new EventParser({ event: ({ data }) => { events.push(data) }, comment () {}, retry () {}, lastEventId () {} })
  parser.push('data: ')
  for (let i = 0; i < 100_000; i++) parser.push('0123456789')
  parser.push('\n\n')
  t.equal(events[0]?.length, 1_000_000)
})

t.test('an event is overlong by its own length, not by that of the stream', async t => {
  const parser = new EventParser({ event () {}, comment () {}, retry () {}, lastEventId () {} })
  const part = 'x'.repeat(1 << 20)
  for (let i = 0; i < 65; i++) parser.push(`data: ${part}\n\n`)
  t.equal(parser.isOverlong, false)
  for (let i = 0; i < 65; i++) parser.push(`data: ${part}\n`)
  t.equal(parser.isOverlong, true)
})

t.test('an event is overlong from the first character above 64 Mi, wherever the text is cut and whatever came before it', async t => {
  const MAX = 64 * 1024 * 1024
  const parser = new EventParser({ event () {}, comment () {}, retry () {}, lastEventId () {} })
  const part = 'x'.repeat(1 << 20)
  const push = (parts: number) => { for (let i = 0; i < parts; i++) parser.push(part) }
  parser.push('data: ')
  push(40)
  parser.push('\n\ndata: ')
  push(30)
  t.equal(parser.isOverlong, false, 'two events')
  push(33)
  parser.push(`${part.slice(6)}`)
  t.equal(parser.isOverlong, false, `${MAX} characters`)
  parser.push('x')
  t.equal(parser.isOverlong, true)
  parser.push('\n')
  t.equal(parser.isOverlong, true, 'also when its line has ended')
  parser.push(`\n: ${part}`)
  t.equal(parser.isOverlong, false)
  push(63)
  t.equal(parser.isOverlong, true, 'a comment')
})

t.test('a byte order mark, and texts without a character', async t => {
  const seen: string[] = []
  const parser = new EventParser({ event: ({ data }) => { seen.push(data) }, comment () {}, retry () {}, lastEventId () {} })
  // The decoder returns an empty text for a part of a character.
  for (const text of ['', '\uFEFFdata: 1\n', '\uFEFFdata: 2\n', 'data: \uFEFF3\r', '', '\ndata: 4\r', '\n', '\r', '\n']) parser.push(text)
  t.same(seen, ['1\n\uFEFF3\n4'], 'only the mark at the beginning is removed')
})
