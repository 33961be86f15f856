import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Starts a redis-server on a free port, without persistence. */
export async function startRedis (): Promise<{ url: string, stop (): Promise<void> }> {
  const port = await freePort()
  const directory = await mkdtemp(join(tmpdir(), 'sse-cluster-'))
  const server = spawn('redis-server', ['--port', String(port), '--bind', '127.0.0.1', '--dir', directory, '--save', '', '--loglevel', 'warning'], { stdio: ['ignore', 'ignore', 'pipe'] })
  // Piped, not inherited: if this process is killed, the remaining server does not keep the standard error open.
  server.stderr.pipe(process.stderr)
  try {
    await once(server, 'spawn')
  } catch {
    await rm(directory, { recursive: true })
    throw new Error('redis-server is not installed. Install it, or set REDIS_URL to one that runs.')
  }
  // The server may not accept connections yet. The nodes wait for it at boot.
  return {
    url: `redis://127.0.0.1:${port}`,
    async stop () {
      if (server.exitCode === null && server.kill()) await once(server, 'exit')
      await rm(directory, { recursive: true })
    }
  }
}

async function freePort (): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
