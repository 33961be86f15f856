import { Script } from '../script.js'

/**
 * The common beginning of the scripts of runs. A run is one hash: its state, and the text of each event under its number. `load()` reads
 * a run, and writes the end of one whose lease is over. It returns Redis's error if the key is of another type. `reply()` returns the
 * state, its values joined by line feeds.
 *
 * Fields: generation, status, reason, events, startedAt, endedAt, settings; token, lease (its end) and ttl of the producer; node of the
 * producer; first number of the last append; readers, as `node:end` for each node with readers, joined by commas. Times are
 * milliseconds of Redis's clock.
 */
const RUN = `
local function integer (value) return string.format('%.0f', value) end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local key, run
local names = { 'generation', 'status', 'reason', 'events', 'startedAt', 'endedAt', 'settings', 'token', 'lease', 'ttl', 'node', 'first', 'readers' }
local function set (fields)
  local list = {}
  for name, value in pairs(fields) do
    run[name] = value
    table.insert(list, name)
    table.insert(list, value)
  end
  redis.call('HSET', key, unpack(list))
end
local function finish (status, reason)
  set({ status = status, reason = reason, endedAt = integer(now) })
  redis.call('PEXPIRE', key, run.ttl)
end
-- The end is that of the lease, whenever it is noticed: the key and the list of the owner already expire a ttl later.
local function lose () set({ status = 'lost', reason = '', endedAt = run.lease }) end
local function reading ()
  local nodes = {}
  for node, till in string.gmatch(run.readers, '([^:,]+):(%d+)') do
    if tonumber(till) > now then nodes[node] = till end
  end
  return nodes
end
local function reply ()
  local nodes = {}
  for node in pairs(reading()) do table.insert(nodes, node) end
  return table.concat({ run.generation, run.status, run.reason, run.events, run.startedAt, run.endedAt, run.ttl, run.node, table.concat(nodes, ','), integer(now), run.settings }, '\\n')
end
local function held (generation, token)
  return run and run.generation == generation and run.token == token
end
local function load (name)
  key, run = name, nil
  local values = redis.pcall('HMGET', key, unpack(names))
  if values.err then return values end
  if not values[1] then return end
  run = {}
  for i, name in ipairs(names) do run[name] = values[i] end
  if run.status == 'running' and now > tonumber(run.lease) then lose() end
end
`
/** The same for the scripts of one run. KEYS: the run. */
const ONE_RUN = `${RUN}
local refusal = load(KEYS[1])
if refusal then return refusal end
`

/** Number of parts of a generation that depend on the key. Generations are safe integers until the year 2190. */
export const PARTS = 1_296

/** ARGV: token, node, milliseconds of the lease and of the time after the end, 1 to return an ended run, settings, the time after which nothing is started, the part of the generation that depends on the key. Returns 1 if the run was started, then the state; or `late` and the time. */
export const CLAIM_RUN = new Script(`${ONE_RUN}
if not (run and (run.status == 'running' or run.token == ARGV[1] or ARGV[5] == '1')) then
  if now > tonumber(ARGV[7]) then return { 'late', integer(now) } end
  -- Runs of other keys that start in the same millisecond have another generation. A clock that was set back must not repeat one.
  local generation = math.max(now * ${PARTS} + ARGV[8], run and tonumber(run.generation) + 1 or 0)
  if run then redis.call('UNLINK', key) end
  run = {}
  set({ generation = integer(generation), status = 'running', reason = '', events = '0', startedAt = integer(now), endedAt = '', settings = ARGV[6], token = ARGV[1], lease = integer(now + ARGV[3]), ttl = ARGV[4], node = ARGV[2], first = '0', readers = '' })
  redis.call('PEXPIRE', key, integer(ARGV[3] + ARGV[4]))
end
return { run.token == ARGV[1] and '1' or '0', reply() }
`)

/**
 * KEYS: runs. ARGV: for each run its generation, token, the number of its last event, milliseconds of the lease, the number of texts, and
 * the texts. Returns for each its state, nil if the run does not end there or has another producer, or an error if its key is of another type.
 */
export const APPEND_RUNS = new Script(`${RUN}
local function append (generation, token, after, leaseMs, count, first)
  if not held(generation, token) or run.status ~= 'running' then return false end
  local events = tonumber(run.events)
  -- The same append can arrive twice: its first reply was lost.
  local isRepeated = count > 0 and events == after + count and tonumber(run.first) == after + 1
  if events ~= after and not isRepeated then return false end
  local fields = { lease = integer(now + leaseMs) }
  if count > 0 and not isRepeated then
    for i = 1, count do redis.call('HSET', key, integer(after + i), ARGV[first + i - 1]) end
    fields.events, fields.first = integer(after + count), integer(after + 1)
  end
  set(fields)
  redis.call('PEXPIRE', key, integer(leaseMs + run.ttl))
  return reply()
end
local states, at = {}, 1
for i, name in ipairs(KEYS) do
  local refusal, count = load(name), tonumber(ARGV[at + 4])
  states[i] = refusal or append(ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), count, at + 5)
  at = at + 5 + count
end
return states
`)

/** ARGV: status, reason; of a producer also generation, token, number of the last event, otherwise three empty strings. Returns the state, or nil. */
export const FINISH_RUN = new Script(`${ONE_RUN}
if not run or (ARGV[3] ~= '' and run.generation ~= ARGV[3]) then return false end
if run.status == 'running' and (ARGV[4] == '' or run.token == ARGV[4]) then
  if ARGV[5] ~= '' and run.events ~= ARGV[5] then finish('lost', '') else finish(ARGV[1], ARGV[2]) end
end
return reply()
`)

/** Returns the state, or nil. */
export const GET_RUN = new Script(`${ONE_RUN}
return run and reply() or false
`)

/**
 * ARGV: generation, number of the last event, maximum bytes and events, and the node, or an empty string, and milliseconds for which the
 * node counts as a reader. Returns the state, then the texts; or nil.
 */
export const READ_RUN = new Script(`${ONE_RUN}
if not run then return false end
if ARGV[5] ~= '' and run.status == 'running' then
  local nodes = reading()
  -- Not at each read: a write costs more than the read.
  if not nodes[ARGV[5]] or tonumber(nodes[ARGV[5]]) < now + ARGV[6] / 2 then
    nodes[ARGV[5]] = integer(now + ARGV[6])
    local list = {}
    for node, till in pairs(nodes) do table.insert(list, node .. ':' .. till) end
    set({ readers = table.concat(list, ',') })
  end
end
local page = { reply() }
if run.generation ~= ARGV[1] then return page end
local bytes = 0
for number = tonumber(ARGV[2]) + 1, math.min(tonumber(run.events), ARGV[2] + ARGV[4]) do
  local text = redis.call('HGET', key, integer(number))
  if not text or bytes >= tonumber(ARGV[3]) then break end
  bytes = bytes + #text
  table.insert(page, text)
end
return page
`)

/** ARGV: a node that does not read any more. */
export const LEAVE_RUN = new Script(`${ONE_RUN}
if not run then return 0 end
local nodes, list = reading(), {}
nodes[ARGV[1]] = nil
for node, till in pairs(nodes) do table.insert(list, node .. ':' .. till) end
set({ readers = table.concat(list, ',') })
return 1
`)

/** Notes a run of an owner. KEYS: the list of the owner. ARGV: id, milliseconds for which the run is kept. */
export const NOTE_RUN = new Script(`
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('PEXPIREAT', KEYS[1], redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2])
return 1
`)

/** Wakes a node. KEYS: its channel. ARGV: the text, milliseconds for which the channel is kept. */
export const WAKE_NODE = new Script(`
redis.call('XADD', KEYS[1], 'MAXLEN', '~', 100, '*', 'w', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
`)
