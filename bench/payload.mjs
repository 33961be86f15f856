const START = Buffer.from('{"t":')
const NUMBER = Buffer.from(',"q":')
const TOPIC = Buffer.from(',"k":')
const DATA = Buffer.from('data:')

/** What a `data:` line of this benchmark says of itself, or null: any other line. */
export function readPayload (bytes, position) {
  if (!startsWith(bytes, position, DATA)) return null
  position += DATA.length
  if (bytes[position] === 32) position++
  if (!startsWith(bytes, position, START)) return null
  const time = readNumber(bytes, position + START.length)
  if (!startsWith(bytes, time.end, NUMBER)) return null
  const number = readNumber(bytes, time.end + NUMBER.length)
  const topic = startsWith(bytes, number.end, TOPIC) ? readNumber(bytes, number.end + TOPIC.length).value : -1
  return { time: time.value, number: number.value, topic }
}

function startsWith (bytes, position, expected) {
  for (let i = 0; i < expected.length; i++) if (bytes[position + i] !== expected[i]) return false
  return true
}

function readNumber (bytes, position) {
  let value = 0
  let end = position
  for (; bytes[end] >= 48 && bytes[end] <= 57; end++) value = value * 10 + bytes[end] - 48
  return { value, end }
}
