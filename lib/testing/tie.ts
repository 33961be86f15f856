import { spawn, type ChildProcess } from 'node:child_process'
import type { Socket } from 'node:net'

/** Kills a child when this process ends, also when it is killed itself: no `exit` listener runs then. */
export function tie<C extends ChildProcess> (child: C): C {
  if (child.pid === undefined) return child
  // The standard input of the guard ends with this process. In a group of its own, so that the guard outlives a signal to ours.
  const guard = spawn('sh', ['-c', 'cat > /dev/null; kill -9 "$0" 2> /dev/null', String(child.pid)], { stdio: ['pipe', 'ignore', 'ignore'], detached: true })
  guard.unref()
  ;(guard.stdin as Socket).unref()
  // Without a shell, as on Windows, the `exit` listener has to do.
  guard.once('error', () => {})
  const kill = () => { child.kill('SIGKILL') }
  process.once('exit', kill)
  child.once('exit', () => {
    guard.kill('SIGKILL')
    process.off('exit', kill)
  })
  return child
}
