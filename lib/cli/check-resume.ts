import type { Answer } from './answer.js'
import type { Failure } from './exchange.js'
import { printable, type Finding } from './finding.js'
import type { Observation } from './observation.js'

const READ = "request.headers['last-event-id']   # and in the proxy: pass the header on"

/** Returns the finding about a stream without ids, which cannot resume; null for a stream with ids. */
export function checkIds ({ lastEventId, events }: Observation): Finding | null {
  if (lastEventId !== null && lastEventId !== '') return null
  if (events === 0) return { check: 'resume', level: 'skipped', text: 'No event and no id has arrived, so a resume was not tried.', change: '--watch 70   # seconds, while something is published' }
  return { check: 'resume', level: 'warning', text: 'Events have no ids: a client that reconnects does not receive what it has missed.', change: 'a line `id: 42` in each event, and after Last-Event-ID the events that follow it' }
}

/** With which id a client returns. */
export interface Return {
  readonly id: string
  /** The id of an event that the client has not received, if it has received that of `id` last; null if there is none. */
  readonly missedId: string | null
}

/** Returns the id with which a client returns that has missed the newest event; that of the end of a stream that has ended. */
export function returnOf ({ lastEventId, previousEventId, newestEventId, ending }: Observation): Return {
  if (ending === 'end' || previousEventId === null) return { id: lastEventId!, missedId: null }
  return { id: previousEventId, missedId: newestEventId }
}

/** Returns the finding about a client that returns, and receives no stream. */
export function checkReturn (answer: Answer | Failure, { ending }: Observation, { id }: Return): Finding {
  if ('head' in answer && answer.head.status === 204 && ending === 'end') return { check: 'resume', level: 'ok', text: `A client that returns with the id ${printable(id)} is told to stop: it has received all events.` }
  const said = 'failure' in answer ? answer.message : `the server answers ${answer.head.status}`
  const change = 'failure' in answer && answer.code === 'ERR_INVALID_CHAR' ? 'ids without control characters, which no header may contain' : 'the route: the header Last-Event-ID must not lead to an error'
  return { check: 'resume', level: 'problem', text: `A client that returns with the id ${printable(id)} is refused: ${printable(said)}.`, change }
}

/** Returns the finding about a second stream, which was opened with an id of the first. */
export function checkResume (first: Observation, second: Observation, { id, missedId }: Return): Finding {
  const shown = printable(id)
  const { firstEvent, lastEvent } = second
  if (lastEvent?.event === 'sse:gap') return { check: 'resume', level: 'warning', text: `After the id ${shown} the server reports lost events: ${printable(lastEvent.data)}.`, change: 'history: { maxEvents: 100_000, maxAgeMs: 3_600_000 }   # and a log in Redis, if the process was restarted' }
  const beginning = firstEvent?.id ?? null
  if (beginning !== null && beginning === first.firstEvent?.id && beginning !== id) {
    return { check: 'resume', level: 'problem', text: `A client that returns with the id ${shown} receives all events again: the server ignores Last-Event-ID, or a proxy removes it.`, change: READ }
  }
  if (lastEvent?.id === id) return { check: 'resume', level: 'problem', text: `A client that returns with the id ${shown} receives the event with this id again.`, change: 'send the events after Last-Event-ID: id > lastEventId, not id >= lastEventId' }
  if (missedId === null) return { check: 'resume', level: 'ok', text: `A client that returns with the id ${shown} receives nothing again.` }
  if (lastEvent?.id === missedId) return { check: 'resume', level: 'ok', text: `A client that returns with the id ${shown} receives the event after it.` }
  return { check: 'resume', level: 'warning', text: `A client that returns with the id ${shown} does not receive the event after it, ${printable(missedId)}: the server keeps no history, or a proxy removes Last-Event-ID.`, change: READ }
}
