// The receiving side in a process of its own: node load.mjs <credit file>
import { serve } from './child.mjs'
import { microseconds, sleep } from './clock.mjs'
import { Credit } from './credit.mjs'
import { Http2Sessions } from './http2-sessions.mjs'
import { Http2Reader, SocketReader } from './reader.mjs'
import { Tally } from './tally.mjs'

const credit = new Credit(process.argv[2], 'r+')
const tally = new Tally(credit)
let readers = []
let sessions = null
let cpu = process.cpuUsage()
let since = microseconds()

/** @param options.ports of one server or of several, which get the connections in turn. */
async function connect ({ ports, path, connections, concurrency = 64, distinct = false, lastEventId = null, streamsPerSession = 0, timeoutMs = 60_000 }) {
  const deadline = microseconds() + timeoutMs * 1000
  const start = microseconds()
  tally.remember = !distinct
  readers = []
  const headers = lastEventId === null ? {} : { 'last-event-id': lastEventId }
  sessions = streamsPerSession === 0 ? null : new Http2Sessions(ports[0], streamsPerSession)
  let opening = 0
  let failed = null
  while (readers.length < connections || opening > 0) {
    if (failed !== null) throw new Error(`connection refused: ${failed}`)
    if (microseconds() > deadline) throw new Error(`only ${readers.length - opening} of ${connections} connections opened`)
    while (opening < concurrency && readers.length < connections) {
      const i = readers.length
      opening++
      const reader = new (sessions === null ? SocketReader : Http2Reader)(distinct ? i : -1, tally, error => {
        opening--
        failed ??= error
      })
      reader.open(sessions?.next() ?? ports[i % ports.length], path.replaceAll('{i}', i), headers)
      readers.push(reader)
    }
    await sleep(1)
  }
  return { seconds: (microseconds() - start) / 1e6 }
}

function reset () {
  for (const reader of readers) reader.reset()
  tally.reset()
  cpu = process.cpuUsage()
  since = microseconds()
}

function result () {
  const { user, system } = process.cpuUsage(cpu)
  return { ...tally.result(), cpu: user + system, busy: (user + system) / (microseconds() - since) }
}

/** From now on the first `count` connections read nothing more. */
function stall ({ count }) {
  for (let i = 0; i < count; i++) readers[i].stalled = true
}

function close () {
  for (const reader of readers) reader.close()
  sessions?.close()
  readers = []
  tally.reset()
}

serve({ connect, reset, result, stall, close })
