// Hosts one implementation in a process of its own and publishes there: node server.mjs <adapter> <credit file>
import { createServer } from 'node:net'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { allocation } from './allocation.mjs'
import { serve } from './child.mjs'
import { microseconds, sleep, turn } from './clock.mjs'
import { Credit } from './credit.mjs'
import { emit, tokensOf } from './tokens.mjs'

const [name, creditFile] = process.argv.slice(2)
const adapter = await (await import(`./adapters/${name}.mjs`)).default()
const credit = new Credit(creditFile, 'r')
const RSS_EVERY_MS = 100

let publishErrors = 0
const countError = () => { publishErrors++ }

// Events from outside: one JSON text a line, passed on as they come.
let lines = ''
const publisher = createServer(socket => {
  socket.setEncoding('latin1')
  socket.on('error', () => {})
  socket.on('data', text => {
    lines += text
    let start = 0
    for (let end = lines.indexOf('\n'); end !== -1; end = lines.indexOf('\n', start)) {
      adapter.publish(JSON.parse(lines.slice(start, end)))?.catch(countError)
      start = end + 1
    }
    lines = lines.slice(start)
  })
})
await new Promise(resolve => publisher.listen(0, '127.0.0.1', resolve))

/** The payload of an event: when it was published, its number, and padding up to `size` bytes of JSON. */
function padding (size) {
  return 'x'.repeat(Math.max(0, size - JSON.stringify({ t: microseconds(), q: 1000, pad: '' }).length))
}

function startMeter () {
  const start = microseconds()
  const cpu = process.cpuUsage()
  return {
    get seconds () { return (microseconds() - start) / 1e6 },
    stop () {
      const { user, system } = process.cpuUsage(cpu)
      return { seconds: (microseconds() - start) / 1e6, cpu: user + system }
    }
  }
}

/** Waits until the load has `total` events; false when it does not get them. */
async function delivered (total, timeoutMs = 20_000) {
  const deadline = microseconds() + timeoutMs * 1000
  while (credit.count < total) {
    if (microseconds() > deadline) return false
    await sleep(2)
  }
  return true
}

/**
 * Closed loop: `publish` is called `perTurn` times in a turn, while less than `window` deliveries are on their way.
 * @param options.pipelined whether the next turn does not wait until those of this one are acknowledged.
 */
async function closedLoop ({ seconds, perTurn, window, receivers, pipelined = false }, publish) {
  const meter = startMeter()
  let published = 0
  let received = 0
  while (published === 0 || meter.seconds < seconds) {
    while ((published + perTurn) * receivers - received > window) {
      received = credit.count
      if ((published + perTurn) * receivers - received <= window) break
      if (meter.seconds > seconds + 20) throw new Error(`stuck: ${published * receivers} deliveries due, ${received} made`)
      await sleep(1)
    }
    const pending = []
    for (let i = 0; i < perTurn; i++) {
      const promise = publish(published++)
      if (promise !== undefined) pending.push(pipelined ? promise.catch(countError) : promise)
    }
    if (pending.length > 0 && !pipelined) await Promise.all(pending)
    await turn()
  }
  const complete = await delivered(published * receivers)
  return { ...meter.stop(), published, deliveries: published * receivers, complete }
}

async function fanout ({ connections, perTurn, window, seconds, size, watch, pipelined }) {
  const pad = padding(size)
  if (watch) watchLoop()
  const result = await closedLoop({ seconds, perTurn, window: window * connections, receivers: connections, pipelined }, q => adapter.publish({ t: microseconds(), q, pad }))
  return watch ? { ...result, ...unwatchLoop() } : result
}

async function topics ({ topics, perTurn, window, seconds, size }) {
  const pad = padding(size)
  const numbers = new Uint32Array(topics)
  let random = 12345
  return await closedLoop({ seconds, perTurn, window, receivers: 1 }, () => {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0
    const k = (random >>> 8) % topics
    return adapter.publishTo(k, { t: microseconds(), q: numbers[k]++, k, pad })
  })
}

/** Open loop from inside: one event every `1 / hz` seconds, whatever becomes of it. */
async function rate ({ receivers, hz, seconds, size }) {
  const pad = padding(size)
  const meter = startMeter()
  const start = microseconds()
  let peakRss = 0
  const sampler = setInterval(() => { peakRss = Math.max(peakRss, process.memoryUsage.rss()) }, RSS_EVERY_MS)
  const total = Math.max(1, Math.round(hz * seconds))
  for (let q = 0; q < total; q++) {
    const due = start + q * 1e6 / hz
    for (let left = due - microseconds(); left > 0; left = due - microseconds()) await sleep(Math.max(1, Math.floor(left / 1000)))
    adapter.publish({ t: microseconds(), q, pad })?.catch(countError)
  }
  const complete = await delivered(total * receivers)
  clearInterval(sampler)
  return { ...meter.stop(), published: total, deliveries: total * receivers, complete, peakRss }
}

/** Open loop: every source yields a token in turn, `hz` in a second altogether. */
async function sources ({ streams, hz, seconds, size }) {
  const pad = padding(size)
  const meter = startMeter()
  const total = Math.round(hz * seconds / streams) * streams
  for (let sent = 0; sent < total;) {
    const due = Math.min(total, Math.floor(meter.seconds * hz))
    for (; sent < due; sent++) emit(sent % streams, JSON.stringify({ t: microseconds(), q: Math.floor(sent / streams), k: sent % streams, pad }))
    await sleep(1)
  }
  const complete = await delivered(total)
  return { ...meter.stop(), published: total, deliveries: total, complete }
}

/** Starts a run for each stream of `sources`. */
async function startRuns ({ runs }) {
  await Promise.all(Array.from({ length: runs }, (_, i) => adapter.startRun(i, () => tokensOf(i))))
  return {}
}

/** Memory of runs that have ended and are kept: heap and what is outside it, for each run, and the bytes of its events. */
async function keepRuns ({ runs, tokens, size }) {
  const text = JSON.stringify({ t: microseconds(), q: 1000, pad: padding(size) })
  const answer = async function * () { for (let n = 0; n < tokens; n++) yield text }
  const memory = async () => {
    await collect()
    const { heapUsed, external } = process.memoryUsage()
    return heapUsed + external
  }
  const keep = async name => Promise.all(Array.from({ length: runs }, async (_, i) => await (await adapter.startRun(`${name}:${i}`, answer, { ttlMs: 3_600_000 })).finished))
  await keep('warm')
  const before = await memory()
  await keep('kept')
  const perRun = (await memory() - before) / runs
  return { perRun, runBytes: tokens * `data: ${text}\n\n`.length }
}

/** Publishes events to topics in turn. Returns the cursor of a client that has received none of them. */
async function fill ({ events, topics, size }) {
  const pad = padding(size)
  const { id: cursor } = await adapter.publishTo('nobody', {})
  let pending = []
  for (let i = 0; i < events; i++) {
    const topic = topics[i % topics.length]
    const k = /^\d+$/.test(topic) ? { k: Number(topic) } : null
    pending.push(adapter.publishTo(topic, { t: microseconds(), q: Math.floor(i / topics.length), ...k, pad }))
    if (pending.length < 100) continue
    await Promise.all(pending)
    pending = []
    await turn()
  }
  await Promise.all(pending)
  return { cursor }
}

let loopDelay = null

function watchLoop () {
  loopDelay = monitorEventLoopDelay({ resolution: 1 })
  loopDelay.enable()
}

function unwatchLoop () {
  loopDelay.disable()
  return { stallP99: loopDelay.percentile(99) / 1e6, stallMax: loopDelay.max / 1e6 }
}

function usage () {
  const { user, system } = process.cpuUsage()
  const { rss, heapUsed } = process.memoryUsage()
  return { cpu: user + system, rss, heapUsed, connections: adapter.count(), publishErrors }
}

async function collect () {
  for (let i = 0; i < 2; i++) {
    global.gc()
    await sleep(50)
  }
  return usage()
}

serve({
  describe: () => ({ port: adapter.port, publisherPort: publisher.address().port, paths: adapter }),
  fanout,
  topics,
  rate,
  sources,
  startRuns,
  keepRuns,
  fill,
  watchLoop,
  unwatchLoop,
  usage,
  collect,
  allocation: params => allocation(params, adapter, delivered)
})
