import { createClient, type ClientState, SSEClientError } from '../client/index.js'
import { duration, jsonText, printable } from './finding.js'
import type { Terminal } from './terminal.js'

/** What `tail` is asked for. */
export interface Tailing {
  readonly url: URL
  readonly headers: Readonly<Record<string, string>>
  readonly json: boolean
  /** Names of the events that are printed; empty for all. A gap is always printed. */
  readonly events: readonly string[]
  readonly lastEventId: string
  /** Number of events after which it ends. */
  readonly count: number
  readonly timeoutMs: number
}

/** How many events may wait for a slow reader of the output. */
const MAX_BUFFERED = 100_000

/** Prints the events of a stream, until it is closed for good. Returns the exit code: 1 if the server has refused it. */
export async function tail ({ url, headers, json, events, lastEventId, count, timeoutMs }: Tailing, { out, err, signal }: Terminal): Promise<number> {
  const client = createClient(url, { headers, lastEventId, timeoutMs })
  const close = (): void => client.close()
  signal.addEventListener('abort', close)
  client.onState(state => err(`${stateText(state)}\n`))
  let left = count
  try {
    for await (const { id, event, data, text } of client.events(undefined, { maxBuffered: MAX_BUFFERED })) {
      if (events.length > 0 && event !== 'sse:gap' && !events.includes(event)) continue
      await out(json ? `${jsonText({ id, event, data })}\n` : `${printable(id ?? '-')}  ${printable(event)}  ${printable(text)}\n`)
      if (--left === 0) break
    }
    return 0
  } catch (error) {
    if (!(error instanceof SSEClientError)) throw error
    err(`${printable(error.message)}.\n`)
    return 1
  } finally {
    signal.removeEventListener('abort', close)
    close()
  }
}

function stateText (state: ClientState): string {
  if (state.name === 'waiting') return `waiting ${state.retryInMs === null ? '' : `${duration(state.retryInMs)}: `}${printable([state.reason, state.status, state.code].filter(part => part !== undefined).join(' '))}`
  return state.name === 'closed' ? `closed: ${printable(state.reason)}` : state.name
}
