import { Closed, TooManyCommands } from '../errors.js'
import type { Cluster } from './cluster.js'
import type { ConnectionList } from './connection-list.js'
import { formatPosition, type ConnectionPage, type ResolvedQuery } from './connection-page.js'
import type { NodeDetails, NodeInspection } from './node-inspection.js'
import type { Outcome } from './scatter-gather.js'

/** Returns a page of the connections of all nodes; of this node only while the others cannot be reached. @internal */
export async function findConnections (cluster: Cluster, list: ConnectionList, query: ResolvedQuery): Promise<ConnectionPage> {
  const { value, complete, unanswered } = await orOwn(cluster, cluster.ask('connections', query), () => list.page(query))
  const { connections, total, until } = value!
  const page = connections.slice(0, query.limit)
  return { connections: page, after: page.length < connections.length ? formatPosition(page.at(-1)!) : until, total, complete, missing: unanswered }
}

/** Returns the details of all nodes; of this node only while the others cannot be reached. @internal */
export async function inspectNodes (cluster: Cluster, inspection: NodeInspection): Promise<{ details: NodeDetails[], complete: boolean, missing: readonly string[] }> {
  const { value, complete, unanswered } = await orOwn(cluster, cluster.ask('details'), async () => [await inspection.read()])
  return { details: value!, complete, missing: unanswered }
}

/** Answers a question for this node alone if the other nodes cannot be asked. */
async function orOwn<R> (cluster: Cluster, asked: Promise<Outcome<R>>, own: () => Promise<R>): Promise<Outcome<R>> {
  try {
    return await asked
  } catch (error) {
    if (error instanceof Closed || error instanceof TooManyCommands) throw error
    const [, ...others] = cluster.stats().nodes
    return { value: await own(), complete: false, unanswered: others.map(({ nodeId }) => nodeId) }
  }
}
