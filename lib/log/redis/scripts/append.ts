import { PLACE } from './place.js'
import { Script } from '../script.js'

/**
 * Appends a batch, whole and once. KEYS as of PLACE, and the writer's. ARGV: number of the batch; time after which it must not be
 * appended; milliseconds for which the writer is remembered; for log and ephemeral stream each events, milliseconds and bytes
 * kept; then for each message 1 when it is logged, 2 when it is logged and a command, its bytes as nodes count them, head and data; then the end as of PLACE.
 * Returns `done`, Redis's clock, epoch and first sequence number; or `late` and the clock when nothing was appended.
 */
export const APPEND = new Script(`${PLACE}
-- A writer has one batch under way at a time: what is not newer than its last one has been appended, or was given up.
local writer = redis.pcall('GET', KEYS[4])
local last, lastEpoch, lastFirst = string.match(type(writer) == 'string' and writer or '', '^(%d+):(%d+):(%d+)$')
if last and tonumber(last) >= tonumber(ARGV[1]) then return { 'done', integer(now), lastEpoch, lastFirst } end
-- Its publishers have been told that it failed: Redis was frozen, or this comes from a connection that was given up.
if now > tonumber(ARGV[2]) then return { 'late', integer(now) } end

-- Time and bytes of the oldest entry. An entry that is not ours has neither, and is the first to be trimmed.
local function front (stream)
  local first = redis.call('XRANGE', stream.key, '-', '+', 'COUNT', 1)[1]
  if first then stream.firstTime, stream.firstBytes = count(first[2][2]) or 0, count(first[2][4]) or stream.bytes end
end
-- Bytes are counted from the beginning of the stream; an entry carries how many there were before it (b), and how far the
-- other stream was (o), so that the order of both is known, and number and time of the newest command before it (c, ct), so
-- that a reader that finds a hole knows whether a command is in it.
-- What is known of a stream and how it is limited stand at the same places, in the meta data and in ARGV.
local function open (key, name, length, at)
  local stream = { key = key, name = name, length = length, bytes = count(meta[at]) or 0 }
  stream.firstBytes, stream.firstTime = count(meta[at + 1]), count(meta[at + 2])
  stream.maxEvents, stream.maxAgeMs, stream.maxBytes = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  if not stream.firstBytes or not stream.firstTime then front(stream) end
  return stream
end
local stray, command, commandTime
-- Returns Redis's error when it refuses; sets stray when the stream has a greater id than any node has given.
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
  -- What is too old is dropped a little at a time: Redis does nothing else meanwhile.
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
  -- What this batch has appended goes with the rest, so that nothing is there twice or half.
  renew('the stream ' .. stray .. ' has an id that no node has given')
  refused = append()
end
if refused then return refused end
redis.call('SET', KEYS[4], ARGV[1] .. ':' .. integer(epoch) .. ':' .. first, 'PX', ARGV[3])
return { 'done', integer(now), integer(epoch), first }
`)
