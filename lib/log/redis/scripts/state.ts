/**
 * The common beginning of APPEND and GREET: reads the state of the log. KEYS: meta, log, ephemeral. The last of ARGV has three
 * numbers joined by colons: the epoch that the caller reads, or 0; number and time of the newest command that it has read there.
 * Sets now, epoch, seq, ephemerals and the lengths of the streams.
 *
 * A log that has lost its metadata or its entries, or whose keys were changed from outside, is renewed: it gets a new epoch and a
 * reason. An epoch is its time of start in milliseconds, so that a later epoch sorts after an earlier one. Entries have the id
 * `epoch-seq`. A reader that blocks after an entry of the old epoch is therefore woken by the first entry of the new one.
 */
export const STATE = `
local function integer (value) return string.format('%.0f', value) end
local function count (text)
  local value = tonumber(text)
  return value and value >= 0 and value < 9007199254740992 and value == math.floor(value) and value or nil
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local wrong
-- Returns the reply to a command, or nil if the key has another type. Other errors end the script.
local function look (command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not string.find(reply.err, 'WRONGTYPE', 1, true) then return redis.call(command, key, ...) end
  wrong = 'the key ' .. key .. ' was overwritten with another type'
end
local meta = look('HMGET', KEYS[1], 'epoch', 'seq', 'ephemerals', 'logBytes', 'logFirstBytes', 'logFirstTime', 'ephemeralBytes', 'ephemeralFirstBytes', 'ephemeralFirstTime', 'command', 'previous', 'previousCommand', 'commandTime', 'previousTime') or {}
local epoch, seq, ephemerals = count(meta[1]), count(meta[2]), count(meta[3])
local length, ephemeralLength = look('XLEN', KEYS[2]), look('XLEN', KEYS[3])

-- The previous epoch, 0 if unknown, and its newest known command: from the metadata, or from callers that have read that epoch.
-- By it, a node detects that it has missed an epoch or a command.
local callerEpoch, callerCommand, callerTime = string.match(ARGV[#ARGV], '^(%d+):(%d+):(%d+)$')
callerEpoch, callerCommand, callerTime = count(callerEpoch), count(callerCommand), count(callerTime)
local previous, previousCommand, previousTime = count(meta[11]) or 0, count(meta[12]) or 0, count(meta[14]) or 0
-- Greater than all command numbers: no node has read all commands of the epoch.
local LOST = 9007199254740991
-- Returns the newer of two commands of one epoch. The same number with another time is a different command: Redis has lost one.
local function newer (command, time, other, otherTime)
  if command == other and time ~= otherTime then return LOST, 0 end
  if command < other then return other, otherTime end
  return command, time
end
local function inherit ()
  if previous == 0 or callerEpoch == epoch or callerEpoch < previous then return end
  local command, time = callerCommand, callerTime
  if callerEpoch == previous then command, time = newer(previousCommand, previousTime, command, time) end
  if callerEpoch == previous and command == previousCommand then return end
  previous, previousCommand, previousTime = callerEpoch, command, time
  -- Errors are ignored: a replica accepts no writes, but can be read.
  redis.pcall('HSET', KEYS[1], 'previous', integer(previous), 'previousCommand', integer(previousCommand), 'previousTime', integer(previousTime))
end
local function renew (why)
  previous, previousCommand, previousTime = epoch or callerEpoch, count(meta[10]) or 0, count(meta[13]) or 0
  if not epoch then previousCommand, previousTime = callerCommand, callerTime
  -- The caller may have read more than the metadata say.
  elseif callerEpoch == epoch then previousCommand, previousTime = newer(previousCommand, previousTime, callerCommand, callerTime) end
  epoch, seq, ephemerals = math.max(now, previous + 1), 0, 0
  meta, length, ephemeralLength = {}, 0, 0
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'epoch', integer(epoch), 'seq', 0, 'ephemerals', 0, 'why', why, 'previous', integer(previous), 'previousCommand', integer(previousCommand), 'previousTime', integer(previousTime))
end
if wrong then renew(wrong)
elseif redis.call('EXISTS', KEYS[1]) == 0 then renew('Redis has lost the log (restarted without its data, flushed, or the key ' .. KEYS[1] .. ' was deleted)')
elseif not epoch or not seq or not ephemerals then renew('the key ' .. KEYS[1] .. ' was changed')
elseif seq > 0 and length == 0 and redis.call('EXISTS', KEYS[2]) == 0 then renew('the key ' .. KEYS[2] .. ' was deleted')
else inherit() end
`
