import fc from 'fast-check'

fc.configureGlobal({ includeErrorInReport: true })

// --- What the world may throw at an encoder ---

export const nasty = fc.constantFrom(
  '\r', '\n', '\r\n', '\n\r', '\r\r\n', '\n\n', '\0', '\uFEFF', '\u2028', '\u2029', '\u0085', '\v', '\f', ' ', '\t', ':', '%s', '%',
  'data: x', 'data', 'id: 1', 'id:', 'event: forged', 'retry: 1', ': comment', '😀', '👩‍👩‍👧', 'é', '\u0301', '\ud83d', '\ude00', '\uffff', 'x', '0', '{"a":1}')
export const text = fc.array(fc.oneof(nasty, fc.string({ unit: 'binary', maxLength: 8 })), { maxLength: 12, size: 'max' }).map(parts => parts.join(''))

export const name = fc.oneof(
  { weight: 4, arbitrary: text },
  { weight: 2, arbitrary: fc.constantFrom('message', 'data', 'notification', ' lead', 'trail ', 'a:b', '%s', 'x'.repeat(256)) },
  { weight: 2, arbitrary: fc.constantFrom<unknown>('', 'open', 'error', 'sse:', 'sse:gap', 'x'.repeat(257), 'a\nb', 'a\rb', 'a\0b', '\ud800', undefined, null, 1, {}, ['a'], Symbol('s'), Object.create(null)) })

// --- What must be refused, said another way than lib/ says it ---

export const has = (value: string, characters: string) => [...characters].some(character => value.includes(character))
export const wellFormed = (value: string) => Buffer.from(value, 'utf8').toString('utf8') === value

export const validName = (value: unknown) => typeof value === 'string' && value.length >= 1 && value.length <= 256 && !has(value, '\r\n\0') && wellFormed(value) &&
  value !== 'open' && value !== 'error' && value.slice(0, 4) !== 'sse:'
