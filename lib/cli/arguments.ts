import { parseArgs } from 'node:util'
import { InvalidArgument } from '../errors.js'
import { quote } from '../util/quote.js'

/** A command line that was understood. */
export type Command =
  | { readonly command: 'help' }
  | { readonly command: 'doctor', readonly url: URL, readonly headers: Readonly<Record<string, string>>, readonly json: boolean, readonly origin: string | null, readonly timeoutMs: number, readonly watchMs: number }
  | { readonly command: 'tail', readonly url: URL, readonly headers: Readonly<Record<string, string>>, readonly json: boolean, readonly events: readonly string[], readonly lastEventId: string, readonly count: number, readonly timeoutMs: number }

export const HELP = `Usage: fastify-sse-manager <command> <url> [options]

  doctor <url>   Opens an event stream of any server, and says what is wrong between here and there.
                 Exits with 1 if there is a problem. Ctrl-C ends it with a partial report, and 130.
    --origin <origin>     the page that opens the stream, such as https://app.example: checks CORS
    --watch <seconds>     longest time for which the stream is watched (default 70)
  tail <url>     Prints the events of a stream as they arrive, and resumes after interruptions.
    --event <name>        only events with this name; can be repeated
    --last-event-id <id>  begins after this event
    --count <number>      ends after this number of events

  Both:
    --header '<name>: <value>'   a header of each request, such as a cookie; can be repeated
    --timeout <seconds>          longest time to the answer (default 10)
    --json                       output for programs
`

const COMMON = { header: { type: 'string', multiple: true }, timeout: { type: 'string' }, json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } as const
const OPTIONS = {
  doctor: { ...COMMON, origin: { type: 'string' }, watch: { type: 'string' } },
  tail: { ...COMMON, event: { type: 'string', multiple: true }, 'last-event-id': { type: 'string' }, count: { type: 'string' } }
} as const
const ID_OPTION = '--last-event-id'

/**
 * Reads a command line.
 * @throws SSE_ERR_INVALID_ARGUMENT, or an error of `parseArgs()`
 */
export function readArguments ([command = 'help', ...args]: readonly string[]): Command {
  if (['help', '--help', '-h'].includes(command)) return { command: 'help' }
  if (command === 'doctor') return readDoctor(args)
  if (command === 'tail') return readTail(args)
  throw new InvalidArgument(`There is no command ${quote(command)}: use doctor or tail`)
}

function readDoctor (args: string[]): Command {
  const { values, positionals } = parseArgs({ args, options: OPTIONS.doctor, allowPositionals: true })
  if (values.help === true) return { command: 'help' }
  return { command: 'doctor', ...readCommon(values, positionals), origin: values.origin === undefined ? null : originOf(values.origin), watchMs: milliseconds('--watch', values.watch ?? '70') }
}

function readTail (args: string[]): Command {
  const { values, positionals } = parseArgs({ args: withId(args), options: OPTIONS.tail, allowPositionals: true })
  if (values.help === true) return { command: 'help' }
  const count = values.count === undefined ? Infinity : Number(values.count)
  if (!(count >= 1) || (count !== Infinity && !Number.isInteger(count))) throw new InvalidArgument(`--count must be a whole number from 1, got ${quote(values.count)}`)
  const lastEventId = values['last-event-id'] ?? ''
  // eslint-disable-next-line no-control-regex
  if (/[\u0000-\u001f\u007f]/.test(lastEventId)) throw new InvalidArgument(`--last-event-id must not contain control characters, got ${quote(lastEventId)}`)
  return { command: 'tail', ...readCommon(values, positionals), events: values.event ?? [], lastEventId, count }
}

/** Joins `--last-event-id` and its value: `parseArgs()` rejects a value that begins with `-`, and an id can begin with it. */
function withId (args: readonly string[]): string[] {
  const at = args.indexOf(ID_OPTION)
  const [value, ...rest] = args.slice(at + 1)
  if (at < 0 || value === undefined || args.slice(0, at).includes('--') || isOption(value)) return [...args]
  return [...args.slice(0, at), `${ID_OPTION}=${value}`, ...rest]
}

/** Returns whether an argument is an option of `tail`, with or without a value. */
function isOption (arg: string): boolean {
  const [name = ''] = arg.split('=', 1)
  return name.startsWith('--') && Object.hasOwn(OPTIONS.tail, name.slice(2))
}

interface CommonValues { header?: string[] | undefined, timeout?: string | undefined, json?: boolean | undefined }

function readCommon ({ header = [], timeout = '10', json = false }: CommonValues, [url, another]: readonly string[]) {
  if (url === undefined) throw new InvalidArgument('The URL of the stream is missing')
  if (another !== undefined) throw new InvalidArgument(`There is a second URL, ${quote(another)}`)
  return { url: urlOf(url), headers: Object.fromEntries(header.map(headerOf)), timeoutMs: milliseconds('--timeout', timeout), json }
}

function urlOf (text: string): URL {
  const isHTTP = (text: string): boolean => URL.canParse(text) && /^https?:$/.test(new URL(text).protocol)
  if (!isHTTP(text)) {
    const hint = !/^\/|:\/\//.test(text) && isHTTP(`http://${text}`) ? `: write ${quote(`http://${text}`)}` : ''
    throw new InvalidArgument(`The URL must begin with http:// or https://, got ${quote(text)}${hint}`)
  }
  const url = new URL(text)
  // They would be shown in the report, and no browser sends them from a page.
  if (url.username !== '' || url.password !== '') throw new InvalidArgument("The URL must not contain credentials: use --header 'authorization: …'")
  return url
}

function originOf (text: string): string {
  // A path, or a slash at the end, would never be equal to the origin that a browser sends.
  if (!URL.canParse(text) || new URL(text).origin !== text) throw new InvalidArgument(`--origin must be a scheme, a host and a port, such as https://app.example, got ${quote(text)}`)
  return text
}

function headerOf (text: string): [name: string, value: string] {
  const [, name, value] = /^([\w!#$%&'*+.^`|~-]+):\s*([\t\x20-\x7e\x80-\xff]*)$/.exec(text) ?? []
  if (name === undefined) throw new InvalidArgument("--header must have the form 'name: value'")
  return [name.toLowerCase(), value!.trim()]
}

function milliseconds (option: string, text: string): number {
  const seconds = Number(text)
  // The longest timer of Node.js is 24 days.
  if (!(seconds > 0 && seconds <= 86_400)) throw new InvalidArgument(`${option} must be a number of seconds above 0 and up to 86400, got ${quote(text)}`)
  return seconds * 1_000
}
