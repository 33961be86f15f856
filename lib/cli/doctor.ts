import { checkHeaders, checkStatus, checkType } from './check-answer.js'
import { checkConnection } from './check-connection.js'
import { checkOrigin, checkPreflight, preflightHeaders } from './check-origin.js'
import { checkIds, checkResume } from './check-resume.js'
import { checkStream } from './check-stream.js'
import { ask, Answer, type Failure } from './exchange.js'
import { duration, printable, type Finding, type Level } from './finding.js'
import { observe, type Observation } from './observation.js'
import { proxyOf } from './proxy.js'

/** What `doctor` is asked for. Times are in milliseconds. */
export interface Examination {
  readonly url: URL
  /** Headers of each request, by lower-case name. */
  readonly headers: Readonly<Record<string, string>>
  /** The origin of a page that opens the stream; null for a page of the same origin. */
  readonly origin: string | null
  /** Longest time to the headers of an answer. */
  readonly timeoutMs: number
  /** Longest time for which the stream is watched. */
  readonly watchMs: number
}

/** What `doctor` has found. */
export interface Report {
  /** After redirects. */
  readonly url: string
  /** The worst level of the findings. */
  readonly level: Level
  readonly findings: readonly Finding[]
  /** What the findings rest on; null without a stream. */
  readonly measured: Measured | null
}

export interface Measured extends Omit<Observation, 'events'> {
  readonly status: number
  readonly httpVersion: string
  /** Time to the headers, in milliseconds. */
  readonly headMs: number
  /** Number of events, at most 1,000. */
  readonly events: number
}

const LEVELS: readonly Level[] = ['ok', 'note', 'warning', 'problem']
const REDIRECTS = [301, 302, 303, 307, 308]
const MAX_REDIRECTS = 5
/** How long a client that has returned is watched for events that it already has. */
const RESUME_MS = 3_000

/** Opens the stream as a browser does, watches it, and opens it again. */
export async function examine (examination: Examination): Promise<Report> {
  const doctor = new Doctor(examination)
  await doctor.examine()
  return doctor.report
}

class Doctor {
  readonly #origin: string | null
  readonly #timeoutMs: number
  readonly #watchMs: number
  readonly #findings: Finding[] = []
  #url: URL
  #headers: Readonly<Record<string, string>>
  #measured: Measured | null = null

  constructor ({ url, headers, origin, timeoutMs, watchMs }: Examination) {
    this.#url = url
    // What an EventSource sends.
    this.#headers = { accept: 'text/event-stream', 'accept-encoding': 'gzip, deflate, br', 'cache-control': 'no-cache', 'user-agent': 'fastify-sse-manager doctor', ...headers }
    this.#origin = origin
    this.#timeoutMs = timeoutMs
    this.#watchMs = watchMs
  }

  get report (): Report {
    const worst = Math.max(0, ...this.#findings.map(({ level }) => LEVELS.indexOf(level)))
    return { url: this.#url.href, level: LEVELS[worst]!, findings: this.#findings, measured: this.#measured }
  }

  async examine (): Promise<void> {
    const answer = await this.#follow()
    if (answer !== null && await this.#isStream(answer)) {
      const seen = await this.#watch(answer)
      if (seen !== null) await this.#resume(seen)
    }
    if (answer !== null && this.#origin !== null) await this.#checkOrigin(answer, this.#origin)
  }

  #ask (headers: Readonly<Record<string, string>> = {}, method = 'GET'): Promise<Answer | Failure> {
    return ask({ url: this.#url, method, headers: { ...this.#headers, ...headers }, timeoutMs: this.#timeoutMs })
  }

  /** Returns the answer that is not a redirect; null without one. */
  async #follow (): Promise<Answer | null> {
    for (let redirects = 0; ; redirects++) {
      const answer = await this.#ask()
      if ('failure' in answer) {
        this.#findings.push(checkConnection(this.#url, answer, answer.failure === 'silent' ? await this.#proxy() : proxyOf(null)))
        return null
      }
      const location = REDIRECTS.includes(answer.status) ? answer.header('location') : ''
      if (location === '' || redirects === MAX_REDIRECTS || !URL.canParse(location, this.#url.href)) return answer
      answer.close()
      if (!this.#redirect(new URL(location, this.#url))) return null
    }
  }

  /** Returns whether it leads to a server. */
  #redirect (to: URL): boolean {
    if (!/^https?:$/.test(to.protocol)) {
      this.#findings.push({ check: 'redirect', level: 'problem', text: `The server redirects to ${printable(to.href)}, which is no address of HTTP.`, change: 'the header location: http:// or https://' })
      return false
    }
    this.#findings.push({ check: 'redirect', level: 'note', text: `The server redirects to ${printable(to.href)}.` })
    if (to.origin !== this.#url.origin) {
      // As browsers do: the credentials are those of the first server.
      const { cookie, authorization, ...headers } = this.#headers
      this.#headers = headers
    }
    this.#url = to
    return true
  }

  /** Asks who answers first. nginx rejects a TRACE itself, also when the server behind it does not answer. */
  async #proxy () {
    const answer = await this.#ask({}, 'TRACE')
    if ('failure' in answer) return proxyOf(null)
    answer.close()
    return proxyOf(answer)
  }

  async #isStream (answer: Answer): Promise<boolean> {
    const type = checkType(answer)
    const isStream = answer.status === 200 && type.level !== 'problem'
    const body = isStream ? '' : await answer.text(this.#timeoutMs)
    this.#findings.push(checkStatus(answer, body))
    if (answer.status === 200) this.#findings.push(type)
    if (isStream) this.#findings.push(...checkHeaders(answer))
    return isStream
  }

  /** Watches the stream. Returns null if a compressor holds it back. */
  async #watch (answer: Answer): Promise<Observation | null> {
    const isCompressed = answer.compression !== ''
    const seen = await observe(answer, { watchMs: this.#watchMs, ...(isCompressed && { giveUpMs: this.#timeoutMs }) })
    const { events, ...measured } = seen
    this.#measured = { status: answer.status, httpVersion: answer.version, headMs: answer.headMs, ...measured, events: events.length }
    if (isCompressed && await this.#isHeldBack(answer, seen)) return null
    this.#findings.push(...checkStream(answer, seen, proxyOf(answer)))
    return seen
  }

  async #isHeldBack ({ compression }: Answer, { firstTextMs, durationMs }: Observation): Promise<boolean> {
    const encoding = printable(compression)
    const change = 'cache-control: no-transform   # or no compression for text/event-stream; nginx: gzip off;'
    if (firstTextMs !== null) {
      this.#findings.push({ check: 'compression', level: 'note', text: `The stream is compressed (${encoding}), and arrives all the same.`, change })
      return false
    }
    const plain = await this.#ask({ 'accept-encoding': 'identity' })
    const seen = 'failure' in plain ? null : await observe(plain, { watchMs: this.#timeoutMs, isLast: () => true })
    if (seen === null || seen.firstTextMs === null) return false
    this.#findings.push({ check: 'compression', level: 'problem', text: `Nothing arrives within ${duration(durationMs)}, because a compressor (${encoding}) holds the stream back: without compression the first text arrives after ${duration(seen.firstTextMs)}.`, change })
    return true
  }

  async #resume (first: Observation): Promise<void> {
    const missing = checkIds(first)
    if (missing !== null || first.lastEventId === null) {
      if (missing !== null) this.#findings.push(missing)
      return
    }
    const answer = await this.#ask({ 'last-event-id': first.lastEventId })
    if ('failure' in answer || answer.status !== 200) {
      if (!('failure' in answer)) answer.close()
      if ('status' in answer && answer.status === 204 && first.ending === 'end') {
        this.#findings.push({ check: 'resume', level: 'ok', text: `A client that returns with the id ${printable(first.lastEventId)} is told to stop: it has received all events.` })
        return
      }
      const said = 'failure' in answer ? answer.message : `the server answers ${answer.status}`
      this.#findings.push({ check: 'resume', level: 'problem', text: `A client that returns with the id ${printable(first.lastEventId)} is refused: ${said}.`, change: 'the route: the header Last-Event-ID must not lead to an error' })
      return
    }
    const second = await observe(answer, { watchMs: Math.min(RESUME_MS, this.#watchMs), isLast: ({ id, event }) => id === first.lastEventId || event === 'sse:gap' })
    this.#findings.push(checkResume(first, second))
  }

  async #checkOrigin ({ cookies }: Answer, origin: string): Promise<void> {
    const answer = await this.#ask({ origin })
    if (!('failure' in answer)) answer.close()
    const found = checkOrigin(answer, origin, cookies.length > 0 || 'cookie' in this.#headers)
    this.#findings.push(found)
    if (found.level === 'problem') return
    const headers = preflightHeaders(this.#headers).filter(name => !['accept-encoding', 'cache-control'].includes(name))
    const preflight = await this.#ask({ origin, 'access-control-request-method': 'GET', 'access-control-request-headers': headers.join(',') }, 'OPTIONS')
    if (!('failure' in preflight)) preflight.close()
    this.#findings.push(checkPreflight(preflight, origin, headers))
  }
}
