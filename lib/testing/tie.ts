import { spawn, type ChildProcess } from 'node:child_process'
import type { Socket } from 'node:net'

/** Kills a child process when this process ends. That includes a killed process, which runs no `exit` listeners. */
export function tie<C extends ChildProcess> (child: C): C {
  if (child.pid === undefined) return child
  // The standard input of the guard process ends with this process. The guard has its own process group, so that a signal to this group
  // does not end it.
  const guard = spawn('sh', ['-c', 'cat > /dev/null; kill -9 "$0" 2> /dev/null', String(child.pid)], { stdio: ['pipe', 'ignore', 'ignore'], detached: true })
  guard.unref()
  ;(guard.stdin as Socket).unref()
  // Without a shell, as on Windows, only the `exit` listener kills the child.
  guard.once('error', () => {})
  const kill = () => { child.kill('SIGKILL') }
  process.once('exit', kill)
  child.once('exit', () => {
    guard.kill('SIGKILL')
    process.off('exit', kill)
  })
  return child
}
