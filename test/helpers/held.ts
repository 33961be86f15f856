import { Session } from 'node:inspector'

interface Value { type: string, subtype?: string, className?: string, description?: string, value?: unknown, objectId?: string }
interface Property { name: string, value?: Value }

const kRoot = Symbol.for('fastify-sse-manager.test-root')
const DEPTH = 12
/** What belongs to Node.js and to other packages. */
const FOREIGN = /^(?:Fastify|Server|Socket|Timeout|Immediate|Promise|Weak|Buffer|Redis|Uint8Array|AsyncLocalStorage|Pino|EventEmitter|TypeCheck)/
const OWN = /^(?:[A-Z]\w*|Object|(?:Map|Set|Array)\(\d+\))$/

/**
 * What an object holds: the size of each collection and the value of each number that can be reached from it, private fields included.
 * Those of the items of an array are added up.
 */
export function held (root: object): Map<string, number> {
  const session = new Session()
  session.connect()
  const call = (method: string, params: object): any => {
    let answer: unknown
    session.post(method, params, (error, result) => {
      if (error !== null) throw new Error(`${method}: ${error.message}`)
      answer = result
    })
    return answer
  }
  const found = new Map<string, number>()
  const add = (path: string, value: unknown): void => { if (typeof value === 'number') found.set(path, (found.get(path) ?? 0) + value) }
  const visit = ({ subtype, description = '', objectId }: Value, path: string, depth: number): void => {
    if (!isNew(objectId!)) return
    if (subtype === 'array' || subtype === 'map' || subtype === 'set') add(`${path}.size`, Number(/\d+/.exec(description)![0]))
    if (depth === DEPTH) throw new Error(`${path} is too deep to be looked at`)
    const { result, privateProperties = [] } = call('Runtime.getProperties', { objectId, ownProperties: true }) as { result: Property[], privateProperties?: Property[] }
    for (const { name, value } of [...result, ...privateProperties]) {
      if (value === undefined || name === '__proto__') continue
      const at = `${path}.${/^\d+$/.test(name) ? '*' : name}`
      if (value.type === 'object' && value.subtype !== 'null' && OWN.test(value.description ?? '') && !FOREIGN.test(value.className ?? '')) visit(value, at, depth + 1)
      else if (name !== 'length') add(at, value.value)
    }
  }
  const global = globalThis as unknown as Record<symbol, unknown>
  global[kRoot] = { root, seen: new Set() }
  const isNew = (objectId: string): boolean => call('Runtime.callFunctionOn', {
    objectId,
    functionDeclaration: `function () { const { seen } = globalThis[Symbol.for('${kRoot.description}')]; return !seen.has(this) && !!seen.add(this) }`,
    returnByValue: true
  }).result.value
  try {
    visit(call('Runtime.evaluate', { expression: `globalThis[Symbol.for('${kRoot.description}')].root` }).result, '', 0)
  } finally {
    delete global[kRoot]
    session.disconnect()
  }
  return found
}

/** What `after` holds more or less than `before`, but for what `expected` matches. */
export function changes (before: Map<string, number>, after: Map<string, number>, expected: RegExp): string[] {
  return [...new Set([...before.keys(), ...after.keys()])]
    .filter(path => !expected.test(path) && (before.get(path) ?? 0) !== (after.get(path) ?? 0))
    .map(path => `${path}: ${before.get(path) ?? 0}, then ${after.get(path) ?? 0}`)
}
