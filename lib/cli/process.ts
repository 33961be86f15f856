import { main } from './main.js'

/** Runs the command line of this process, and ends it. */
export async function runProcess (): Promise<void> {
  const { argv, stdout, stderr } = process
  const interruption = new AbortController()
  // A second Ctrl-C ends the process at once.
  process.once('SIGINT', () => { interruption.abort() })
  // `| head` closes the pipe when it has seen enough.
  stdout.on('error', (error: NodeJS.ErrnoException) => { process.exit(error.code === 'EPIPE' ? 0 : 1) })
  const code = await main(argv.slice(2), {
    out: async text => { await new Promise<unknown>(resolve => stdout.write(text, resolve)) },
    err: text => { stderr.write(text) },
    signal: interruption.signal
  })
  // The lookup of a name cannot be cancelled, and would delay the end of the process.
  process.exit(code)
}
