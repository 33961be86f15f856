import { F, H2_FLOOR, H2_OURS, OURS, PUBSUB, SHARED_OURS, W } from './statistics.mjs'

const OUTBOX_BYTES = 1024 * 1024

const atMost = limit => ({ limit: `≤ ${limit}`, met: value => value <= limit })
const atLeast = limit => ({ limit: `≥ ${limit}`, met: value => value >= limit })
const yes = { limit: 'yes', met: value => value === true }
const keptUp = (statistics, scenario) => {
  const samples = statistics.samples(scenario, OURS)
  return samples.length === 0 ? null : samples.every(sample => sample.keptUp)
}

/** What this package promises itself; sizes are those of a full run. */
const TARGETS = [
  ['Single events, 1,000 connections: CPU ÷ F', atMost(1.1), s => s.ratio('fanout-1000-1', 'cpu', OURS, F)],
  ['Single events, 1,000 connections: CPU ÷ best peer', atMost(0.6), s => s.ratioToBestPeer('fanout-1000-1', 'cpu')],
  ['Single events, 10,000 connections: CPU ÷ F', atMost(1.1), s => s.ratio('fanout-10000-1', 'cpu', OURS, F)],
  ['Single events, 10,000 connections: CPU ÷ best peer', atMost(0.6), s => s.ratioToBestPeer('fanout-10000-1', 'cpu')],
  ['Single events, 10,000 connections, one at a time: CPU ÷ F', atMost(1.1), s => s.ratio('stall-10000', 'cpu', OURS, F)],
  ['Single events, 10,000 connections, one at a time: CPU ÷ best peer', atMost(0.6), s => s.ratioToBestPeer('stall-10000', 'cpu')],
  ['Bursts of 10, 1,000 connections: CPU ÷ F', atMost(0.13), s => s.ratio('fanout-1000-10', 'cpu', OURS, F)],
  ['Bursts of 10, 1,000 connections: deliveries/s ÷ best peer', atLeast(7), s => s.ratioToBestPeer('fanout-1000-10', 'rate', { higherIsBetter: true })],
  ['Open loop, 1,000 × 400 events/s: p99 ÷ best peer', atMost(0.05), s => s.ratioToBestPeer('openloop-1000-400', 'p99')],
  ['Open loop, 1,000 × 1,000 events/s: kept up', yes, s => keptUp(s, 'openloop-1000-1000')],
  ['20,000 deliveries/s: p50 ÷ F', atMost(1.15), s => s.ratio('latency-1000', 'p50', OURS, F)],
  ['20,000 deliveries/s: p99 ÷ F', atMost(1.15), s => s.ratio('latency-1000', 'p99', OURS, F)],
  ['One of 10,000 topics: CPU ÷ F', atMost(1.08), s => s.ratio('topics-10000', 'cpu', OURS, F)],
  ['Sources, 500 streams × 50 tokens/s: CPU ÷ response.write()', atMost(1), s => s.ratio('sources-500', 'cpu', OURS, W)],
  ['Sources, 500 streams × 50 tokens/s: CPU ÷ best peer', atMost(1), s => s.ratioToBestPeer('sources-500', 'cpu')],
  ['Runs, 500 × 50 tokens/s, in memory: CPU ÷ response.write()', atMost(1.3), s => s.ratio('runs-500', 'cpu', OURS, W)],
  ['Runs, 500 × 50 tokens/s, in memory: p50 added to response.write(), ms', atMost(2), s => s.difference('runs-500', 'p50', OURS, W)],
  ['Runs, 500 × 50 tokens/s, produced on one node and read on another: CPU of both ÷ response.write()', atMost(2.5), s => s.ratio('runs-500', 'nodesCpu', SHARED_OURS, W)],
  ['Memory of a finished run ÷ (1.5 × its bytes + 2 KB)', atMost(1), s => divide(s.value('kept-500', OURS, 'perRun'), allowed(s.value('kept-500', OURS, 'runBytes')))],
  ['HTTP/2, single events, 1,000 streams: CPU ÷ stream.write()', atMost(1), s => s.ratio('h2-1000-1', 'cpu', H2_OURS, H2_FLOOR)],
  ['HTTP/2, bursts of 10, 1,000 streams: CPU ÷ stream.write()', atMost(0.3), s => s.ratio('h2-1000-10', 'cpu', H2_OURS, H2_FLOOR)],
  ['Return, 1 % of 10,000 events: CPU ÷ a dense replay of as many', atMost(1.5), s => s.value('replay-200', OURS, 'sparseRatio')],
  ['Return, none of 10,000 events: CPU ÷ connect', atMost(1.2), s => s.value('replay-200', OURS, 'noneRatio')],
  ['Storm of 5,000: time until all are live ÷ connects + bytes', atMost(1.3), s => s.value('storm-5000-6000', OURS, 'timeRatio')],
  ['Storm of 5,000: event-loop stall p99, ms', atMost(50), s => s.value('storm-5000-6000', OURS, 'stallP99')],
  ['Import, register and ready after Fastify is loaded, ms', atMost(70), s => s.value('boot', OURS, 'bootMs')],
  ['Idle connection at 10,000: RSS ÷ bare node:http', atMost(0.85), s => s.ratio('idle-10000', 'rssPerConnection', OURS, W)],
  ['Connect: server CPU ÷ bare node:http', atMost(1.15), s => s.ratio('idle-10000', 'connectCpu', OURS, W)],
  ['Connect: server CPU ÷ @fastify/sse', atMost(1), s => s.ratio('idle-10000', 'connectCpu', OURS, 'fastify-sse')],
  ['The first 1,000 connects after boot: CPU ÷ F', atMost(1.3), s => s.ratio('idle-10000', 'firstConnectCpu', OURS, F)],
  ['10 stalled readers of 1,000: RSS growth ÷ (10 × outboxBytes)', atMost(1), s => divide(s.value('stalled-10-of-1000', OURS, 'rssGrowth'), 10 * OUTBOX_BYTES)],
  ['10 stalled readers of 1,000: p99 of the others ÷ without them', atMost(1.2), s => divide(s.value('stalled-10-of-1000', OURS, 'p99'), s.value('stalled-10-of-1000', OURS, 'controlP99'))],
  ['Event-loop stall at 10,000 connections: p99, ms', atMost(15), s => s.value('stall-10000', OURS, 'stallP99')],
  ['Open loop, 10,000 × 100 events/s: kept up', yes, s => keptUp(s, 'openloop-10000-100')],
  ['Open loop, 10,000 × 100 events/s: p99, ms', atMost(300), s => s.value('openloop-10000-100', OURS, 'p99')],
  ['Redis, 20,000 deliveries/s: p50 added to the log in memory, ms', atMost(1), s => s.difference('redis-1000-latency', 'p50', SHARED_OURS, OURS)],
  ['Redis, single events: deliveries/s ÷ plain pub/sub', atLeast(1), s => s.ratio('redis-1000-1', 'rate', SHARED_OURS, PUBSUB)],
  ['Redis, bursts of 10: deliveries/s ÷ plain pub/sub', atLeast(1), s => s.ratio('redis-1000-10', 'rate', SHARED_OURS, PUBSUB)],
  ['Heap allocated per delivered event beyond F, bytes', atMost(1), s => subtract(s.value('allocation', OURS, 'heapPerDelivery'), s.value('allocation', F, 'heapPerDelivery'))]
]

function allowed (runBytes) {
  return runBytes === null ? null : 1.5 * runBytes + 2048
}

function subtract (value, base) {
  return value === null || base === null ? null : value - base
}

function divide (value, base) {
  return value === null || base === null ? null : value / base
}

/** Every target that this run can speak about. */
export function checkTargets (statistics) {
  return TARGETS.map(([name, { limit, met }, measure]) => {
    const value = measure(statistics)
    return { name, limit, value, met: value === null ? null : met(value) }
  }).filter(target => target.value !== null)
}
