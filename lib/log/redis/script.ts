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

// KEYS: meta, log, ephemeral. Sets now, epoch, seq and ephemerals; a log that has lost its meta data, or its entries, begins
// a new life. An epoch is the time at which it began, in milliseconds, so that a later one sorts behind: entries have the id
// `epoch-seq`, and a reader that is blocked behind an entry of the old life is woken by the first one of the new.
const PLACE = `
local function integer (value) return string.format('%.0f', value) end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'ephemerals', 'logBytes', 'logFirstBytes', 'logFirstTime', 'ephemeralBytes', 'ephemeralFirstBytes', 'ephemeralFirstTime')
local epoch, seq, ephemerals = tonumber(meta[1]), tonumber(meta[2]), tonumber(meta[3])
local length = redis.call('XLEN', KEYS[2])
local function renew ()
  epoch, seq, ephemerals = math.max(now, (epoch or 0) + 1), 0, 0
  meta, length = {}, 0
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'epoch', integer(epoch), 'seq', 0, 'ephemerals', 0)
end
if not epoch or not seq or not ephemerals or (seq > 0 and length == 0 and redis.call('EXISTS', KEYS[2]) == 0) then renew() end
`

/**
 * Where the log stands. ARGV: a sequence number; an epoch to give up, or nothing; 1 to fail where nothing may be written.
 * Returns epoch, oldest and newest sequence number, newest ephemeral number, Redis's clock, and the times at which the
 * entries of the given and of the newest number were logged.
 */
export const GREET = new Script(`${PLACE}
if ARGV[2] == integer(epoch) then renew() end
if ARGV[3] == '1' then redis.call('HSET', KEYS[1], 'epoch', integer(epoch)) end
local function timeOf (number)
  local id = integer(epoch) .. '-' .. number
  local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
  return entry and entry[2][2] or ''
end
local oldest = seq > 0 and redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
return { integer(epoch), oldest and string.match(oldest[1], '%d+$') or integer(seq + 1), integer(seq), integer(ephemerals), integer(now), seq > 0 and timeOf(ARGV[1]) or '', timeOf(integer(seq)) }
`)

/**
 * Appends a batch, once. KEYS as above, and the writer's. ARGV: number of the batch; time after which it must not be appended;
 * milliseconds for which the writer is remembered; for log and ephemeral stream each events, milliseconds and bytes kept;
 * then for each message 1 when it is logged, its bytes as nodes count them, head and data.
 * Returns `done`, Redis's clock, epoch and first sequence number; or `late` and the clock when nothing was appended.
 */
export const APPEND = new Script(`${PLACE}
-- A writer has one batch under way at a time: what is not newer than its last one has been appended, or was given up.
local last, lastEpoch, lastFirst = string.match(redis.call('GET', KEYS[4]) or '', '(%d+):(%d+):(%d+)')
if last and tonumber(last) >= tonumber(ARGV[1]) then return { 'done', integer(now), lastEpoch, lastFirst } end
-- Its publishers have been told that it failed: Redis was frozen, or this comes from a connection that was given up.
if now > tonumber(ARGV[2]) then return { 'late', integer(now) } end

-- Bytes are counted from the beginning of the stream; an entry carries how many there were before it (b), and how far the
-- other stream was (o), so that the order of both is known.
-- What is known of a stream and how it is limited stand at the same places, in the meta data and in ARGV.
local function open (key, name, length, at)
  local stream = { key = key, name = name, length = length, bytes = tonumber(meta[at]) or 0 }
  stream.firstBytes, stream.firstTime = tonumber(meta[at + 1]), tonumber(meta[at + 2])
  stream.maxEvents, stream.maxAgeMs, stream.maxBytes = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  return stream
end
local function add (stream, number, other, bytes, head, data)
  if stream.length == 0 then stream.firstBytes, stream.firstTime = stream.bytes, now end
  redis.call('XADD', stream.key, integer(epoch) .. '-' .. integer(number), 't', integer(now), 'b', integer(stream.bytes), 'o', integer(other), 'h', head, 'd', data)
  stream.bytes, stream.length = stream.bytes + tonumber(bytes), stream.length + 1
end
local function keep (stream, length)
  redis.call('XTRIM', stream.key, 'MAXLEN', length)
  stream.length = length
  local first = redis.call('XRANGE', stream.key, '-', '+', 'COUNT', 1)[1]
  if first then stream.firstTime, stream.firstBytes = tonumber(first[2][2]), tonumber(first[2][4]) end
end
local function close (stream, count, state)
  if stream.length > stream.maxEvents then keep(stream, stream.maxEvents) end
  -- What is too old is dropped a little at a time: Redis does nothing else meanwhile.
  local limit = count + 256
  while limit > 0 and stream.length > 0 and (stream.bytes - stream.firstBytes > stream.maxBytes or stream.firstTime < now - stream.maxAgeMs) do
    keep(stream, stream.length - 1)
    limit = limit - 1
  end
  for field, value in pairs({ Bytes = stream.bytes, FirstBytes = stream.firstBytes, FirstTime = stream.firstTime }) do
    table.insert(state, stream.name .. field)
    table.insert(state, integer(value))
  end
end

local log, ephemeral = nil, nil
local first, count = integer(seq + 1), 0
for i = 10, #ARGV, 4 do
  count = count + 1
  if ARGV[i] == '1' then
    log = log or open(KEYS[2], 'log', length, 4)
    seq = seq + 1
    add(log, seq, ephemerals, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
  else
    ephemeral = ephemeral or open(KEYS[3], 'ephemeral', redis.call('XLEN', KEYS[3]), 7)
    ephemerals = ephemerals + 1
    add(ephemeral, ephemerals, seq, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
  end
end
local state = { 'seq', integer(seq), 'ephemerals', integer(ephemerals) }
if log then close(log, count, state) end
if ephemeral then close(ephemeral, count, state) end
redis.call('HSET', KEYS[1], unpack(state))
redis.call('SET', KEYS[4], ARGV[1] .. ':' .. integer(epoch) .. ':' .. first, 'PX', ARGV[3])
return { 'done', integer(now), integer(epoch), first }
`)
