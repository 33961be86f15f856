import t from 'tap'
import { keyOf, resolveOwner, resolveRunOptions, type RunOptions } from '../../lib/runs/run-options.js'

// The bounds and defaults of the options of a run.

const NOBODY = { ownerId: null }

t.test('defaults', async t => {
  const { text, ...settings } = resolveRunOptions(NOBODY)
  t.strictSame(settings, { ownerId: null, ifFinished: 'restart', ttlMs: 300_000, maxEvents: 100_000, maxBytes: 4 * 1024 * 1024, maxDurationMs: 600_000, idleTimeoutMs: 120_000, graceMs: Infinity })
  t.strictSame(JSON.parse(text), { ttlMs: 300_000, maxEvents: 100_000, maxBytes: 4 * 1024 * 1024, maxDurationMs: 600_000, idleTimeoutMs: 120_000, onDisconnect: 'continue' })
})

t.test('bounds', async t => {
  const bounds: Record<string, [least: number, most?: number]> = { ttlMs: [5_000], maxEvents: [1, 10_000_000], maxBytes: [1], maxDurationMs: [1], idleTimeoutMs: [1] }
  for (const [name, [least, most]] of Object.entries(bounds)) {
    const give = (value: unknown) => resolveRunOptions({ ...NOBODY, [name]: value }) as unknown as Record<string, number>
    const refused = { code: 'SSE_ERR_INVALID_OPTION', message: new RegExp(`"${name}" of startRun\\(\\)`) }
    t.equal(give(least)[name], least)
    t.throws(() => give(least - 1), refused, name)
    t.throws(() => give(least + 0.5), refused)
    t.throws(() => give(String(least)), refused)
    if (most !== undefined) {
      t.equal(give(most)[name], most)
      t.throws(() => give(most + 1), refused)
    }
  }
  for (const [onDisconnect, graceMs] of [['continue', Infinity], ['stop', 1_000], [{ graceMs: 1_000 }, 1_000], [{ graceMs: 7_000 }, 7_000]] as const) t.equal(resolveRunOptions({ ...NOBODY, onDisconnect }).graceMs, graceMs)
  for (const onDisconnect of [{ graceMs: 999 }, { graceMs: 1_000, more: 1 }, 'never', null]) t.throws(() => resolveRunOptions({ ...NOBODY, onDisconnect }), { code: 'SSE_ERR_INVALID_OPTION' })
})

t.test('two starts have the same text if what concerns the run itself is the same', async t => {
  const text = (options: Partial<RunOptions>) => resolveRunOptions({ ...NOBODY, ...options }).text
  t.equal(text({ ownerId: 'ada', ifFinished: 'join' }), text({}))
  for (const options of [{ ttlMs: 5_000 }, { maxEvents: 1 }, { maxBytes: 1 }, { maxDurationMs: 1 }, { idleTimeoutMs: 1 }, { onDisconnect: 'stop' as const }]) t.not(text(options), text({}))
})

t.test('ids and owners', async t => {
  for (const id of ['x', 'x'.repeat(256), 'é'.repeat(128), ' ', '\0']) t.match(keyOf(id, null), { runId: id, ownerId: null, text: `-:${id}` })
  for (const id of ['', 'x'.repeat(257), 'é'.repeat(128) + 'x', '\ud800', 'a\udfff', 7, null, undefined, {}]) t.throws(() => keyOf(id, null), { code: 'SSE_ERR_INVALID_RUN_ID' }, JSON.stringify(id))
  t.match(keyOf('7', 'ada'), { runId: '7', ownerId: 'ada', text: '3:ada:7' })
  for (const ownerId of [null, '', 'ada', 'é😀']) {
    t.equal(resolveOwner({ ownerId }, 'getRun'), ownerId)
    t.equal(resolveRunOptions({ ownerId }).ownerId, ownerId)
  }
  for (const given of [undefined, {}, { ownerId: undefined }, { ownerId: 7 }, { ownerId: '\ud800' }, { ownerId: null, more: 1 }]) {
    t.throws(() => resolveOwner(given, 'getRun'), { code: 'SSE_ERR_INVALID_OPTION', message: /getRun\(\)/ })
    t.throws(() => resolveRunOptions(given), { code: 'SSE_ERR_INVALID_OPTION', message: /startRun\(\)/ })
  }
})
