import { shorten } from '../util/quote.js'
import type { Answer } from './answer.js'
import { printable, type Finding } from './finding.js'
import type { Observation } from './observation.js'

/** A line that clients understand: an empty one, a comment, or a field. */
const KNOWN = /^(?:$|:|(?:data|event|id|retry)(?::|$))/
/** A field of the server's own. Clients ignore it, as they should. */
const OWN = /^[\w-]+:/
/** After this time, the rest of a line is not on its way. */
const ON_ITS_WAY_MS = 500

/** Returns the findings about text that clients do not understand. */
export function checkFormat (answer: Answer, { ending, events, beginning, lastSilenceMs, isOverlong }: Observation): Finding[] {
  const problem = (text: string, change: string): Finding[] => [{ check: 'format', level: 'problem', text, change }]
  if (ending === 'garbled') {
    const change = answer.compression === '' ? 'what writes the chunks of the response' : 'no header content-encoding for a body that is not compressed'
    return problem(`The body cannot be read: ${printable(answer.fault)}.`, change)
  }
  if (isOverlong) return problem('An event does not end: clients give up, or exhaust their memory.', 'an empty line after each event')
  const endsInLine = events === 0 && lastSilenceMs >= ON_ITS_WAY_MS
  const lines = beginning.replace(/^\uFEFF/, '').split(/\r\n|[\r\n]/).slice(0, endsInLine ? undefined : -1)
  const unknown = lines.find(line => !KNOWN.test(line))
  if (unknown !== undefined) {
    const level = events > 0 && OWN.test(unknown) ? 'warning' : 'problem'
    return [{ check: 'format', level, text: `Clients ignore the line ${printable(JSON.stringify(shorten(unknown)))}: it is no field of an event stream.`, change: '`data: ` before each line of the data, with nothing before it' }]
  }
  if (events === 0 && lines.some(line => line.startsWith('data'))) return problem('Data arrives, but no empty line after it: clients wait for the end of the event.', "response.write('data: ' + text + '\\n\\n')")
  return []
}
