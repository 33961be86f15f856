#!/usr/bin/env node
import { once } from 'node:events'
import { main } from '../dist/esm/lib/cli/main.js'

const { stdout, stderr } = process
const interruption = new AbortController()
// `| head` closes the pipe when it has seen enough.
stdout.on('error', error => { process.exit(error.code === 'EPIPE' ? 0 : 1) })

process.exitCode = await main(process.argv.slice(2), {
  out: async text => { if (!stdout.write(text)) await once(stdout, 'drain') },
  err: text => { stderr.write(text) },
  /** Without a command that reads it, Ctrl-C ends the process. */
  get signal () {
    process.once('SIGINT', () => { interruption.abort() })
    return interruption.signal
  }
})
