// The command line in a process of its own, with its signals and exit codes.
import { runProcess } from '../../lib/cli/process.js'

await runProcess()
