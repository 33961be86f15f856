import { fileURLToPath } from 'node:url'
import { Front } from './front.js'
import { startRedis } from './redis.js'
import { Nodes } from './nodes.js'

/** A running cluster. */
export interface Cluster {
  url: string
  close (): Promise<void>
}

const NAMES = ['amber', 'teal']

/** Starts Redis, two nodes on one log, and a proxy in front of them. Rejects if redis-server is not installed. */
export async function startCluster ({ host = '127.0.0.1', port = 3000 } = {}): Promise<Cluster> {
  const redis = process.env.REDIS_URL === undefined ? await startRedis() : { url: process.env.REDIS_URL, stop: async () => {} }
  const nodes = new Nodes(redis.url)
  const front = new Front(() => nodes.ports())
  const close = async () => {
    front.close()
    await nodes.stop()
    await redis.stop()
  }
  try {
    await Promise.all(NAMES.map(name => nodes.start(name)))
    return { url: `http://${host}:${await front.listen(host, port)}`, close }
  } catch (error) {
    await close()
    throw error
  }
}

async function main (): Promise<void> {
  const starting = startCluster({ host: process.env.HOST || '127.0.0.1', port: Number(process.env.PORT || 3000) })
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    // Also during the start, so that no process remains.
    process.once(signal, () => { starting.then(cluster => cluster.close()).catch(() => { process.exitCode = 1 }) })
  }
  console.log(`Two nodes, one log: ${(await starting).url}`)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main().catch((error: unknown) => {
    console.error(error instanceof Error ? error.message : error)
    process.exitCode = 1
  })
}
