import { STATE } from './state.js'
import { Script } from '../script.js'

/**
 * Appends a batch completely and only once. KEYS: as of STATE, then the key of the writer. ARGV: number of the batch; time after
 * which it must not be appended; milliseconds for which the writer is remembered; maximum events, milliseconds and bytes of the
 * log, then of the ephemeral stream. Then four for each message: 0 for ephemeral, 1 for logged or 2 for a logged command; its
 * size in bytes; head; data. Then the end as of STATE.
 * Returns `done`, Redis's clock, epoch and first sequence number; or `late` and the clock if nothing was appended.
 */
export const APPEND = new Script(`${STATE}
-- A writer sends one batch at a time: a batch that is not newer than its last one was appended before, or was given up.
local writer = redis.pcall('GET', KEYS[4])
local last, lastEpoch, lastFirst = string.match(type(writer) == 'string' and writer or '', '^(%d+):(%d+):(%d+)$')
if last and tonumber(last) >= tonumber(ARGV[1]) then return { 'done', integer(now), lastEpoch, lastFirst } end
-- The publishes have been rejected: Redis was frozen, or the batch comes from a connection that was given up.
if now > tonumber(ARGV[2]) then return { 'late', integer(now) } end

-- Reads time and bytes of the oldest entry. An entry that was written from outside has neither, and is trimmed first.
local function front (stream)
  local first = redis.call('XRANGE', stream.key, '-', '+', 'COUNT', 1)[1]
  if first then stream.firstTime, stream.firstBytes = count(first[2][2]) or 0, count(first[2][4]) or stream.bytes end
end
-- Bytes are counted from the beginning of the stream. An entry has: the bytes before it (b); the newest number of the other
-- stream (o), which gives the order of both; number and time of the newest command before it (c, ct), by which a reader that
-- finds entries missing knows whether a command is among them.
-- The fields of a stream in the metadata and its limits in ARGV have the same index.
local function open (key, name, length, at)
  local stream = { key = key, name = name, length = length, bytes = count(meta[at]) or 0 }
  stream.firstBytes, stream.firstTime = count(meta[at + 1]), count(meta[at + 2])
  stream.maxEvents, stream.maxAgeMs, stream.maxBytes = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  if not stream.firstBytes or not stream.firstTime then front(stream) end
  return stream
end
local stray, command, commandTime
-- Returns Redis's error if XADD fails. Sets stray if the stream has a greater id than any node has assigned.
local function add (stream, number, other, bytes, head, data)
  if stream.length == 0 then stream.firstBytes, stream.firstTime = stream.bytes, now end
  local reply = redis.pcall('XADD', stream.key, integer(epoch) .. '-' .. integer(number), 't', integer(now), 'b', integer(stream.bytes), 'o', integer(other), 'h', head, 'd', data, 'c', integer(command), 'ct', integer(commandTime))
  if type(reply) == 'table' and reply.err then
    if string.find(reply.err, 'equal or smaller', 1, true) or string.find(reply.err, 'exhausted', 1, true) then stray = stream.key end
    return reply
  end
  stream.bytes, stream.length = stream.bytes + tonumber(bytes), stream.length + 1
end
local function keep (stream, length)
  redis.call('XTRIM', stream.key, 'MAXLEN', length)
  stream.length = length
  front(stream)
end
local function close (stream, added, state)
  if stream.length > stream.maxEvents then keep(stream, stream.maxEvents) end
  -- Old entries are trimmed in limited steps, because Redis runs nothing else during a script.
  local limit = added + 256
  while limit > 0 and stream.length > 0 and (stream.bytes - stream.firstBytes > stream.maxBytes or stream.firstTime < now - stream.maxAgeMs) do
    keep(stream, stream.length - 1)
    limit = limit - 1
  end
  for field, value in pairs({ Bytes = stream.bytes, FirstBytes = stream.firstBytes, FirstTime = stream.firstTime }) do
    table.insert(state, stream.name .. field)
    table.insert(state, integer(value))
  end
end

local first
local function append ()
  local log, ephemeral, added = nil, nil, 0
  first = integer(seq + 1)
  command, commandTime = count(meta[10]) or 0, count(meta[13]) or 0
  for i = 10, #ARGV - 1, 4 do
    local refused
    added = added + 1
    if ARGV[i] ~= '0' then
      log = log or open(KEYS[2], 'log', length, 4)
      seq = seq + 1
      refused = add(log, seq, ephemerals, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
      if ARGV[i] == '2' then command, commandTime = seq, now end
    else
      ephemeral = ephemeral or open(KEYS[3], 'ephemeral', ephemeralLength, 7)
      ephemerals = ephemerals + 1
      refused = add(ephemeral, ephemerals, seq, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
    end
    if refused then return refused end
  end
  local state = { 'seq', integer(seq), 'ephemerals', integer(ephemerals), 'command', integer(command), 'commandTime', integer(commandTime) }
  if log then close(log, added, state) end
  if ephemeral then close(ephemeral, added, state) end
  redis.call('HSET', KEYS[1], unpack(state))
end
local refused = append()
if stray then
  -- The entries that this batch has appended are deleted with the rest, so that no message is there twice or in part.
  renew('the stream ' .. stray .. ' has an id that no node has given')
  refused = append()
end
if refused then return refused end
redis.call('SET', KEYS[4], ARGV[1] .. ':' .. integer(epoch) .. ':' .. first, 'PX', ARGV[3])
return { 'done', integer(now), integer(epoch), first }
`)
