import type { ParsedEvent } from '../client/event-parser.js'
import type { Answer } from './answer.js'
import { checkHeaders, checkStatus, checkType } from './check-answer.js'
import { checkConnection, checkConnectTime } from './check-connection.js'
import { checkOrigin, checkPreflight, preflightHeaders } from './check-origin.js'
import { checkIds, checkResume, checkReturn, isMissed, returnOf } from './check-resume.js'
import { checkStream } from './check-stream.js'
import { ask, type Failure } from './exchange.js'
import { duration, LEVELS, printable, type Finding, type Level } from './finding.js'
import type { Observation } from './observation.js'
import { proxyOf, type Proxy } from './proxy.js'
import { watch } from './watch.js'

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

export interface Measured extends Omit<Observation, 'firstEvent' | 'lastEvent' | 'newestEvent' | 'previousEvent' | 'beginning'> {
  readonly status: number
  readonly httpVersion: string
  /** Time to the connection, TLS included, in milliseconds. */
  readonly connectMs: number
  /** Time from the connection to the headers, in milliseconds. */
  readonly headMs: number
}

const REDIRECTS = [301, 302, 303, 307, 308]
const MAX_REDIRECTS = 5
/** A proxy that rejects a request itself answers at once. */
const MAX_TRACE_MS = 2_000
/** How long a client that has returned is watched for events. */
const RESUME_MS = 3_000

/** Opens the stream as a browser does, watches it, and opens it again. When the signal aborts, it returns what was found until then. */
export async function examine (examination: Examination, signal: AbortSignal): Promise<Report> {
  const doctor = new Doctor(examination, signal)
  await doctor.examine()
  return doctor.report
}

class Doctor {
  readonly #origin: string | null
  readonly #timeoutMs: number
  readonly #watchMs: number
  readonly #signal: AbortSignal
  readonly #findings: Finding[] = []
  #url: URL
  #headers: Readonly<Record<string, string>>
  #measured: Measured | null = null

  constructor ({ url, headers, origin, timeoutMs, watchMs }: Examination, signal: AbortSignal) {
    this.#url = url
    // What an EventSource sends.
    this.#headers = { accept: 'text/event-stream', 'accept-encoding': 'gzip, deflate, br', 'cache-control': 'no-cache', 'user-agent': 'fastify-sse-manager doctor', ...headers }
    this.#origin = origin
    this.#timeoutMs = timeoutMs
    this.#watchMs = watchMs
    this.#signal = signal
  }

  get report (): Report {
    const worst = Math.max(0, ...this.#findings.map(({ level }) => LEVELS.indexOf(level)))
    return { url: this.#url.href, level: LEVELS[worst]!, findings: this.#findings, measured: this.#measured }
  }

  async examine (): Promise<void> {
    try {
      const answer = await this.#follow()
      if (answer === null) return
      if (await this.#isStream(answer)) {
        const seen = await this.#watch(answer)
        if (seen !== null) this.#findings.push(await this.#resume(seen))
      }
      if (this.#origin !== null) await this.#checkOrigin(answer, this.#origin)
    } catch (error) {
      if (!this.#signal.aborted) throw error
      this.#findings.push({ check: 'interruption', level: 'skipped', text: 'Interrupted: the checks without a line above were not made.' })
    }
  }

  #ask (headers: Readonly<Record<string, string>> = {}, method = 'GET', timeoutMs = this.#timeoutMs): Promise<Answer | Failure> {
    return ask({ url: this.#url, method, headers: { ...this.#headers, ...headers }, timeoutMs, signal: this.#signal })
  }

  /** Asks, and reads no body. */
  async #askHeaders (headers: Readonly<Record<string, string>>, method?: string, timeoutMs?: number): Promise<Answer | Failure> {
    const answer = await this.#ask(headers, method, timeoutMs)
    if (!('failure' in answer)) answer.close()
    return answer
  }

  /** Returns the answer that is not a redirect; null without one. */
  async #follow (): Promise<Answer | null> {
    for (let redirects = 0; ; redirects++) {
      const answer = await this.#ask()
      if ('failure' in answer) {
        this.#findings.push(checkConnection(this.#url, answer, answer.failure === 'silent' ? await this.#proxy() : proxyOf(null)))
        return null
      }
      const location = REDIRECTS.includes(answer.head.status) ? answer.header('location') : ''
      if (location === '' || !URL.canParse(location, this.#url.href)) return answer
      answer.close()
      if (!this.#redirect(new URL(location, this.#url), redirects)) return null
    }
  }

  /** Returns whether it leads to a server. */
  #redirect (to: URL, redirects: number): boolean {
    const problem = (text: string, change: string): boolean => {
      this.#findings.push({ check: 'redirect', level: 'problem', text, change })
      return false
    }
    if (redirects === MAX_REDIRECTS) return problem(`The server redirects more than ${MAX_REDIRECTS} times.`, 'the header location, or --header with credentials')
    if (!/^https?:$/.test(to.protocol)) return problem(`The server redirects to ${printable(to.href)}, which is no address of HTTP.`, 'the header location: http:// or https://')
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
  async #proxy (): Promise<Proxy> {
    const answer = await this.#askHeaders({}, 'TRACE', Math.min(this.#timeoutMs, MAX_TRACE_MS))
    return proxyOf('failure' in answer ? null : answer)
  }

  async #isStream (answer: Answer): Promise<boolean> {
    const type = checkType(answer)
    const isOK = answer.head.status === 200
    const isStream = isOK && type.level !== 'problem'
    const body = isStream ? '' : await answer.text(this.#timeoutMs)
    this.#findings.push(...checkConnectTime(answer), checkStatus(answer, body), ...(isOK ? [type] : []), ...(isStream ? checkHeaders(answer) : []))
    return isStream
  }

  /** Watches the stream. Returns null if its compression hides it. */
  async #watch (answer: Answer): Promise<Observation | null> {
    const encoding = answer.compression
    if (!answer.isDecodable) return this.#compressed('problem', `The stream is compressed (${printable(encoding)}), which the request does not accept.`)
    const seen = await watch(answer, { watchMs: this.#watchMs, ...(encoding !== '' && { giveUpMs: this.#timeoutMs }) }, this.#signal)
    const { status, version: httpVersion, connectMs, headMs } = answer.head
    const { firstEvent, lastEvent, newestEvent, previousEvent, beginning, ...measured } = seen
    this.#measured = { status, httpVersion, connectMs, headMs, ...measured }
    if (encoding !== '' && seen.firstTextMs !== null) this.#compressed('note', `The stream is compressed (${printable(encoding)}), and arrives all the same.`)
    else if (encoding !== '' && seen.ending !== 'garbled') {
      const plainMs = await this.#plainMs()
      if (plainMs !== null) return this.#compressed('problem', `Nothing arrives within ${duration(seen.durationMs)}, because a compressor (${printable(encoding)}) holds the stream back: without compression the first text arrives after ${duration(plainMs)}.`)
    }
    this.#findings.push(...checkStream(answer, seen, proxyOf(answer)))
    this.#signal.throwIfAborted()
    return seen
  }

  #compressed (level: Level, text: string): null {
    this.#findings.push({ check: 'compression', level, text, change: 'cache-control: no-transform   # or no compression for text/event-stream; nginx: gzip off;' })
    return null
  }

  /** Returns the time to the first text of an answer that is not compressed; null if none arrives. */
  async #plainMs (): Promise<number | null> {
    const answer = await this.#ask({ 'accept-encoding': 'identity' })
    if ('failure' in answer) return null
    const { firstTextMs } = await watch(answer, { watchMs: this.#timeoutMs, isLast: () => true }, this.#signal)
    return firstTextMs
  }

  /** Returns with an id of the stream that was watched. */
  async #resume (first: Observation): Promise<Finding> {
    const missing = checkIds(first)
    if (missing !== null) return missing
    const client = returnOf(first)
    // A browser sends the bytes of UTF-8; a header of Node.js has a character for each byte.
    const answer = await this.#ask({ 'last-event-id': Buffer.from(client.id).toString('latin1') })
    if ('failure' in answer) return checkReturn(answer, first, client)
    if (answer.head.status !== 200) {
      answer.close()
      return checkReturn(answer, first, client)
    }
    const isLast = (event: ParsedEvent): boolean => event.id === client.id || event.event === 'sse:gap' || isMissed(event, client)
    const second = await watch(answer, { watchMs: Math.min(RESUME_MS, this.#watchMs), isLast }, this.#signal)
    this.#signal.throwIfAborted()
    return checkResume(first, second, client)
  }

  async #checkOrigin ({ cookies }: Answer, origin: string): Promise<void> {
    const answer = await this.#askHeaders({ origin })
    const found = checkOrigin(answer, origin, cookies.length > 0 || 'cookie' in this.#headers)
    this.#findings.push(found)
    if (found.level === 'problem') return
    const headers = preflightHeaders(this.#headers)
    const preflight = await this.#askHeaders({ origin, 'access-control-request-method': 'GET', 'access-control-request-headers': headers.join(',') }, 'OPTIONS')
    this.#findings.push(checkPreflight(preflight, origin, headers))
  }
}
