import { STATE } from './state.js'
import { Script } from '../script.js'

/**
 * Returns the state of the log. KEYS and the end of ARGV: see STATE. ARGV: a sequence number; an epoch to replace, or an empty
 * string; 1 to fail if Redis accepts no writes. Returns epoch, oldest and newest sequence number, newest ephemeral number, Redis's
 * clock, the times of logging of the given and of the newest entry, why the epoch was started, number and time of the newest
 * command, and the previous epoch with number and time of its newest command.
 */
export const GREET = new Script(`${STATE}
-- An entry after the newest number was not added by a node, or the metadata are older than the stream: XADD would fail.
local function beyond (key, last)
  local entry = redis.call('XRANGE', key, '(' .. integer(epoch) .. '-' .. integer(last), '+', 'COUNT', 1)[1]
  return entry and 'the stream ' .. key .. ' has the entry ' .. entry[1] .. ', which no node has added'
end
local stray = beyond(KEYS[2], seq) or beyond(KEYS[3], ephemerals)
if stray then renew(stray)
elseif ARGV[2] == integer(epoch) then
  -- A command is lost with those entries, or was logged under one of their numbers, where nodes that had read further miss it.
  if (count(meta[10]) or 0) ~= callerCommand then meta[10] = integer(LOST) end
  renew('entries that a node has read are gone')
end
if ARGV[3] == '1' then redis.call('HSET', KEYS[1], 'epoch', integer(epoch)) end
local function timeOf (number)
  local id = integer(epoch) .. '-' .. number
  local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
  return entry and entry[2][2] or ''
end
local oldest = seq > 0 and redis.call('XRANGE', KEYS[2], integer(epoch) .. '-0', '+', 'COUNT', 1)[1]
return { integer(epoch), oldest and string.match(oldest[1], '%d+$') or integer(seq + 1), integer(seq), integer(ephemerals), integer(now), seq > 0 and timeOf(ARGV[1]) or '', timeOf(integer(seq)), redis.call('HGET', KEYS[1], 'why') or '', integer(count(meta[10]) or 0), integer(count(meta[13]) or 0), integer(previous), integer(previousCommand), integer(previousTime) }
`)
