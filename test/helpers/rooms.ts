/**
 * The rooms of lib/ and what each is for, lowest first: a file imports from its own room and from those above it in this list, types included.
 * A new file belongs to one of them; README's table is made from this list.
 */
export const ROOMS: readonly (readonly [room: string, job: string])[] = [
  ['lib/errors.ts', 'every error'],
  ['lib/util/', 'helpers that know nothing of events: ids, logging, deadlines, option schemas, the memory budget'],
  ['lib/events/', 'what an application says: events, the catalogue, messages, targets, topics, subscribers'],
  ['lib/diagnostics/', 'what a node counts and reports: the diagnostics channels'],
  ['lib/log/', 'what is remembered, and in which order: the interface of a broker, cursors, the ring, this node\'s side of the log'],
  ['lib/log/redis/', 'the log of many nodes, in Redis Streams'],
  ['lib/wire/', 'the event-stream format and HTTP: encoding, chunks, headers, writing to a response'],
  ['lib/subscriptions/', 'which connection holds what, and which connections receive a message'],
  ['lib/delivery/', 'from a published event to frames, and when they are written'],
  ['lib/connections/', 'one open stream: its life, its queue, its end'],
  ['lib/access/', 'who may connect; every refusal before the headers are sent'],
  ['lib/streams/', '`reply.sse(source)`'],
  ['lib/runs/', 'sources that outlive the request that started them'],
  ['lib/cluster/', 'nodes among themselves: heartbeats, commands, presence'],
  ['lib/options.ts', 'every option: type, range, default, meaning'],
  ['types/options.ts', 'the options as editors show them, generated from the schemas'],
  ['lib/node.ts', 'the parts of one node, and the only place that constructs them'],
  ['lib/manager.ts', 'the public face: connections, broadcasts, rights, lookups, closing'],
  ['lib/publisher.ts', '`createPublisher()`: events and runs of a process that is no node'],
  ['lib/fastify/', 'the plugin; nothing else loads Fastify'],
  ['types/index.ts', 'what the package adds to the types of Fastify'],
  ['lib/redis.ts', 'entry point `fastify-sse-manager/redis`'],
  ['lib/index.ts', 'entry point `fastify-sse-manager`: names only'],
  ['lib/metrics/', 'entry point `fastify-sse-manager/metrics`: the numbers of a manager in a Prometheus registry'],
  ['lib/admin/', 'entry point `fastify-sse-manager/admin`: a page for operators'],
  ['lib/otel/', 'entry point `fastify-sse-manager/otel`: spans of OpenTelemetry'],
  ['lib/client/', 'entry point `fastify-sse-manager/client`: streams in browsers; it loads nothing of the server but the clock'],
  ['lib/testing/', 'entry point `fastify-sse-manager/testing`: streams that a test opens, reads and breaks; the promises of a broker, as tests'],
  ['lib/cli/', 'the commands `doctor` and `tail`']
]

/** The place of a file in the list of rooms; -1 for a file without a room. */
export function roomOf (file: string): number {
  return ROOMS.findLastIndex(([room]) => room.endsWith('/') ? file.startsWith(room) : file === room)
}
