import type { ParsedEvent } from '../client/event-parser.js'
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

/** A client that returns with this id. */
export interface Return {
  readonly id: string
  /** The event that follows this id; null if none is known. */
  readonly missed: ParsedEvent | null
  /** Whether the event can have another id when it is sent again, as with this package. */
  readonly isRenamed: boolean
}

/** Returns a client that has missed the newest event; one that has all events, if the stream has ended or that event could not be recognised. */
export function returnOf ({ isOwn, lastEventId, previousEvent, newestEvent, ending }: Observation): Return {
  const isKnown = ending !== 'end' && previousEvent !== null && !(isOwn && isSame(previousEvent, newestEvent!))
  return isKnown ? { id: previousEvent.id!, missed: newestEvent, isRenamed: isOwn } : { id: lastEventId!, missed: null, isRenamed: isOwn }
}

/** Returns whether the client has missed this event. */
export function isMissed (event: ParsedEvent, { missed, isRenamed }: Return): boolean {
  return missed !== null && (event.id === missed.id || (isRenamed && isSame(event, missed)))
}

function isSame (one: ParsedEvent, other: ParsedEvent): boolean {
  return one.event === other.event && one.data === other.data
}

/** Returns the finding about a client that returns, and receives no stream. */
export function checkReturn (answer: Answer | Failure, { ending }: Observation, { id }: Return): Finding {
  if ('head' in answer && answer.head.status === 204 && ending === 'end') return { check: 'resume', level: 'ok', text: `A client that returns with the id ${printable(id)} is told to stop: it has received all events.` }
  const said = 'failure' in answer ? answer.message : `the server answers ${answer.head.status}`
  const change = 'failure' in answer && answer.code === 'ERR_INVALID_CHAR' ? 'ids without control characters, which no header may contain' : 'the route: the header Last-Event-ID must not lead to an error'
  return { check: 'resume', level: 'problem', text: `A client that returns with the id ${printable(id)} is refused: ${printable(said)}.`, change }
}

/** Returns the finding about a second stream, which was opened with an id of the first. */
export function checkResume (first: Observation, second: Observation, client: Return): Finding {
  const { id, missed } = client
  const shown = printable(id)
  const { firstEvent, lastEvent } = second
  if (lastEvent?.event === 'sse:gap') return { check: 'resume', level: 'warning', text: `After the id ${shown} the server reports lost events: ${printable(lastEvent.data)}.`, change: 'history: { maxEvents: 100_000, maxAgeMs: 3_600_000 }   # and a log in Redis, if the process was restarted' }
  const beginning = firstEvent?.id ?? null
  if (beginning !== null && beginning === first.firstEvent?.id && beginning !== id) {
    return { check: 'resume', level: 'problem', text: `A client that returns with the id ${shown} receives all events again: the server ignores Last-Event-ID, or a proxy removes it.`, change: READ }
  }
  if (lastEvent?.id === id) return { check: 'resume', level: 'problem', text: `A client that returns with the id ${shown} receives the event with this id again.`, change: 'send the events after Last-Event-ID: id > lastEventId, not id >= lastEventId' }
  if (missed === null) return { check: 'resume', level: 'ok', text: `A client that returns with the id ${shown} receives nothing again.` }
  if (lastEvent !== null && isMissed(lastEvent, client)) return { check: 'resume', level: 'ok', text: `A client that returns with the id ${shown} receives the event after it.` }
  return { check: 'resume', level: 'warning', text: `A client that returns with the id ${shown} does not receive the event after it, ${printable(missed.id!)}: the server keeps no history, or a proxy removes Last-Event-ID.`, change: READ }
}
