import { Script } from '../script.js'

/**
 * Sets a key if it does not exist. KEYS: meta, key. ARGV: the epoch that the caller reads, milliseconds until the key expires.
 * Returns 1 if the key was set, 0 if it existed, -1 if Redis has another epoch: the key may have existed and been lost.
 */
export const CLAIM = new Script(`
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return -1 end
return redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[2]) and 1 or 0
`)
