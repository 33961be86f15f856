import { SSEError } from '../errors.js'
import { HELP, readArguments, type Command } from './arguments.js'
import { examine } from './doctor.js'
import { duration, jsonText } from './finding.js'
import { reportText } from './report.js'
import { tail } from './tail.js'
import type { Terminal } from './terminal.js'

const WRONG_ARGUMENTS = 2
/** As shells report a command that Ctrl-C has ended: 128, and the number of the signal. */
const INTERRUPTED = 130

/** Runs a command line, without the names of the program. Returns the exit code: 1 for a problem, 2 for wrong arguments, 130 for a report that Ctrl-C has cut short. */
export async function main (args: readonly string[], terminal: Terminal): Promise<number> {
  let command: Command
  try {
    command = readArguments(args)
  } catch (error) {
    if (!isWrongArgument(error)) throw error
    terminal.err(`${error.message}\n\n${HELP}`)
    return WRONG_ARGUMENTS
  }
  if (command.command === 'tail') return await tail(command, terminal)
  if (command.command === 'doctor') return await doctor(command, terminal)
  await terminal.out(HELP)
  return 0
}

async function doctor (command: Command & { command: 'doctor' }, { out, err, signal }: Terminal): Promise<number> {
  if (!command.json) err(`The stream is watched for up to ${duration(command.watchMs)} …\n`)
  const report = await examine(command, signal)
  await out(command.json ? `${jsonText(report, 2)}\n` : reportText(report))
  if (signal.aborted) return INTERRUPTED
  return report.level === 'problem' ? 1 : 0
}

function isWrongArgument (error: unknown): error is Error {
  return error instanceof SSEError || (error instanceof Error && String((error as { code?: unknown }).code).startsWith('ERR_PARSE_ARGS'))
}
