import { printable, type Finding } from './finding.js'
import type { Observation } from './observation.js'

/** Returns the finding about a stream without ids, which cannot resume. */
export function checkIds ({ lastEventId, events }: Observation): Finding | null {
  if (lastEventId !== null && lastEventId !== '') return null
  if (events.length === 0) return { check: 'resume', level: 'note', text: 'No event and no id has arrived, so a resume was not tried.', change: '--watch 70   # seconds, while something is published' }
  return { check: 'resume', level: 'warning', text: 'Events have no ids: a client that reconnects does not receive what it has missed.', change: 'a line `id: 42` in each event, and after Last-Event-ID the events that follow it' }
}

/** Returns the finding about a second stream, which was opened with the last id of the first. */
export function checkResume (first: Observation, second: Observation): Finding {
  const id = first.lastEventId!
  const shown = printable(id)
  const gap = second.events.find(({ event }) => event === 'sse:gap')
  if (gap !== undefined) return { check: 'resume', level: 'warning', text: `After the id ${shown} the server reports lost events: ${printable(gap.data)}.`, change: 'history: { maxEvents: 100_000, maxAgeMs: 3_600_000 }   # and a log in Redis, if the process was restarted' }
  const repeated = second.events.find(event => event.id === id)
  if (repeated === undefined) return { check: 'resume', level: 'ok', text: `A client that returns with the id ${shown} receives nothing again.` }
  const beginning = first.events[0]
  if (beginning?.id !== id && beginning?.id === second.events[0]!.id) {
    return { check: 'resume', level: 'problem', text: `A client that returns with the id ${shown} receives all events again: the server ignores Last-Event-ID, or a proxy removes it.`, change: "request.headers['last-event-id']   # and in the proxy: pass the header on" }
  }
  return { check: 'resume', level: 'problem', text: `A client that returns with the id ${shown} receives the event with this id again.`, change: 'send the events after Last-Event-ID: id > lastEventId, not id >= lastEventId' }
}
