import { once } from 'node:events'
import { main } from './main.js'

/** Runs the command line of this process, and sets its exit code. */
export async function runProcess (): Promise<void> {
  const { argv, stdout, stderr } = process
  const interruption = new AbortController()
  // A second Ctrl-C ends the process at once.
  process.once('SIGINT', () => { interruption.abort() })
  // `| head` closes the pipe when it has seen enough.
  stdout.on('error', (error: NodeJS.ErrnoException) => { process.exit(error.code === 'EPIPE' ? 0 : 1) })
  process.exitCode = await main(argv.slice(2), {
    out: async text => { if (!stdout.write(text)) await once(stdout, 'drain') },
    err: text => { stderr.write(text) },
    signal: interruption.signal
  })
}
