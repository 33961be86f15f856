import type { Target } from './broker.js'
import { InvalidTarget } from './errors.js'
import { assertTopic } from './topic.js'
import type { BroadcastOptions, EventOptions } from '../types/index.js'

const LISTS = ['userIds', 'subscriptionIds', 'clientIds', 'exceptClientIds'] as const
const KEYS = new Set<string>([...LISTS, 'filter', 'priority', 'retry', 'key', 'ephemeral', 'local'])

/**
 * Reads a broadcast's options. A list that is there but no list, or a misspelt name, is an error: the event would go to
 * everyone. An empty list is nobody. Lists are copied: the log keeps them.
 * @throws SSE_ERR_INVALID_TARGET, SSE_ERR_INVALID_TOPIC
 */
export function createTarget (options: BroadcastOptions): { target: Target, local: boolean, ephemeral: boolean } & EventOptions {
  if (typeof options !== 'object' || options === null) throw new InvalidTarget('options must be an object')
  const target: { -readonly [K in keyof Target]: Target[K] } = {}
  for (const key of Object.keys(options)) if (!KEYS.has(key)) throw new InvalidTarget(`has an unknown property ${JSON.stringify(key)}`)
  for (const list of LISTS) {
    if (!(list in options)) continue
    const ids = options[list]
    if (!Array.isArray(ids) || !ids.every(id => typeof id === 'string' && id !== '')) throw new InvalidTarget(`${list} must be an array of strings`)
    target[list] = Object.freeze([...ids])
  }
  target.subscriptionIds?.forEach(assertTopic)
  const { filter, ephemeral = false, local = false, priority, retry, key } = options
  if ('filter' in options) {
    if (typeof filter !== 'function') throw new InvalidTarget('filter must be a function')
    target.filter = filter
  }
  if (typeof ephemeral !== 'boolean' || typeof local !== 'boolean') throw new InvalidTarget('ephemeral and local must be booleans')
  return { target, ephemeral, local, ...(priority !== undefined && { priority }), ...(retry !== undefined && { retry }), ...(key !== undefined && { key }) }
}
