import { spawn, type ChildProcess } from 'node:child_process'
import type { Socket } from 'node:net'

/** Kills a child when this process ends, however that happens: a runner that gives up (`--bail`) leaves no time for a teardown. */
export function tie<C extends ChildProcess> (child: C): C {
  if (child.pid === undefined) return child
  // Its standard input ends with this process. In a group of its own, so that it outlives a signal to ours.
  const guard = spawn('sh', ['-c', 'cat > /dev/null; kill -9 "$0" 2> /dev/null', String(child.pid)], { stdio: ['pipe', 'ignore', 'ignore'], detached: true })
  guard.unref()
  ;(guard.stdin as Socket).unref()
  guard.once('error', () => {})
  child.once('exit', () => { guard.kill('SIGKILL') })
  return child
}
