import { createHash } from 'node:crypto'
import { isErrorReply, type Connection } from './client.js'

/** A Lua script, sent by its digest; whole only to a Redis that has not seen it yet, such as one that was restarted. */
export class Script {
  readonly #source: string
  readonly #digest: string

  constructor (source: string) {
    this.#source = source
    this.#digest = createHash('sha1').update(source).digest('hex')
  }

  async run (connection: Connection, keys: readonly string[], args: readonly string[], timeoutMs: number): Promise<unknown> {
    const rest = [String(keys.length), ...keys, ...args]
    try {
      return await connection.send(['EVALSHA', this.#digest, ...rest], timeoutMs)
    } catch (error) {
      if (!isErrorReply(error) || !error.message.startsWith('NOSCRIPT ')) throw error
      return await connection.send(['EVAL', this.#source, ...rest], timeoutMs)
    }
  }
}

// KEYS: meta, log, ephemeral. The last of ARGV, joined by colons: the epoch that the caller reads, or 0, and number and time of
// the newest command that it has read there. Sets now, epoch, seq, ephemerals and the lengths of the streams. A log that has
// lost its meta data or its entries, or whose keys were changed by something else, is renewed: it gets another epoch, and says
// why. An epoch is the time at which it began, in milliseconds, so that a later one sorts behind: entries have the id
// `epoch-seq`, and a reader that is blocked behind an entry of the old epoch is woken by the first one of the new.
const PLACE = `
local function integer (value) return string.format('%.0f', value) end
local function count (text)
  local value = tonumber(text)
  return value and value >= 0 and value < 9007199254740992 and value == math.floor(value) and value or nil
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local wrong
-- The reply to a command, or nil when the key has another type. Other errors are Redis's own, and end the script.
local function look (command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not string.find(reply.err, 'WRONGTYPE', 1, true) then return redis.call(command, key, ...) end
  wrong = 'the key ' .. key .. ' was overwritten with another type'
end
local meta = look('HMGET', KEYS[1], 'epoch', 'seq', 'ephemerals', 'logBytes', 'logFirstBytes', 'logFirstTime', 'ephemeralBytes', 'ephemeralFirstBytes', 'ephemeralFirstTime', 'command', 'previous', 'previousCommand', 'commandTime', 'previousTime') or {}
local epoch, seq, ephemerals = count(meta[1]), count(meta[2]), count(meta[3])
local length, ephemeralLength = look('XLEN', KEYS[2]), look('XLEN', KEYS[3])

-- The epoch before this one, 0 if it is not known, and the newest command that is known of it: from the meta data, or from
-- callers that have read that epoch. By it a node learns that it has missed an epoch or a command.
local callerEpoch, callerCommand, callerTime = string.match(ARGV[#ARGV], '^(%d+):(%d+):(%d+)$')
callerEpoch, callerCommand, callerTime = count(callerEpoch), count(callerCommand), count(callerTime)
local previous, previousCommand, previousTime = count(meta[11]) or 0, count(meta[12]) or 0, count(meta[14]) or 0
-- Greater than all commands: no node has read all that the epoch had.
local LOST = 9007199254740991
-- The newer of two commands of one epoch. The same number at another time is another command: Redis has lost one of the two.
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
  -- A replica is read as well, and takes no writes.
  redis.pcall('HSET', KEYS[1], 'previous', integer(previous), 'previousCommand', integer(previousCommand), 'previousTime', integer(previousTime))
end
local function renew (why)
  previous, previousCommand, previousTime = epoch or callerEpoch, count(meta[10]) or 0, count(meta[13]) or 0
  if not epoch then previousCommand, previousTime = callerCommand, callerTime
  -- The meta data may be older than what the caller has read.
  elseif callerEpoch == epoch then previousCommand, previousTime = newer(previousCommand, previousTime, callerCommand, callerTime) end
  epoch, seq, ephemerals = math.max(now, previous + 1), 0, 0
  meta, length, ephemeralLength = {}, 0, 0
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'epoch', integer(epoch), 'seq', 0, 'ephemerals', 0, 'why', why, 'previous', integer(previous), 'previousCommand', integer(previousCommand), 'previousTime', integer(previousTime))
end
if wrong then renew(wrong)
elseif not epoch or not seq or not ephemerals then renew('the key ' .. KEYS[1] .. ' was deleted or changed')
elseif seq > 0 and length == 0 and redis.call('EXISTS', KEYS[2]) == 0 then renew('the key ' .. KEYS[2] .. ' was deleted')
else inherit() end
`

/**
 * Where the log stands. KEYS and the end of ARGV as above. ARGV: a sequence number; an epoch to give up, or nothing; 1 to fail where nothing may be written.
 * Returns epoch, oldest and newest sequence number, newest ephemeral number, Redis's clock, the times at which the entries of
 * the given and of the newest number were logged, why the epoch was begun, number and time of the newest
 * command, and the epoch before with number and time of its newest command.
 */
export const GREET = new Script(`${PLACE}
-- An entry behind the newest was not added by a node, or the meta data are older than the stream: nothing can be appended.
local function beyond (key, last)
  local entry = redis.call('XRANGE', key, '(' .. integer(epoch) .. '-' .. integer(last), '+', 'COUNT', 1)[1]
  return entry and 'the stream ' .. key .. ' has the entry ' .. entry[1] .. ', which no node has added'
end
local stray = beyond(KEYS[2], seq) or beyond(KEYS[3], ephemerals)
if stray then renew(stray)
elseif ARGV[2] == integer(epoch) then
  -- A command is lost with those entries, or was logged in their place, where nodes that had read on do not see it.
  if (count(meta[10]) or 0) ~= callerCommand or (count(meta[13]) or 0) ~= callerTime then meta[10] = integer(LOST) end
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

/**
 * Sets a key unless it is set. KEYS: meta, key. ARGV: the epoch that the caller reads, milliseconds until the key expires.
 * Returns 1 if it was set, 0 if it was there, -1 if Redis has another epoch: the key may have been there and was lost.
 */
export const CLAIM = new Script(`
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return -1 end
return redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[2]) and 1 or 0
`)

/**
 * Appends a batch, whole and once. KEYS as above, and the writer's. ARGV: number of the batch; time after which it must not be
 * appended; milliseconds for which the writer is remembered; for log and ephemeral stream each events, milliseconds and bytes
 * kept; then for each message 1 when it is logged, 2 when it is logged and a command, its bytes as nodes count them, head and data; then the end as above.
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
