import t from 'tap'

// What the page computes. Its files have no types.
const FIGURES = '../../lib/admin/page/figures.js'

t.test('the rise of a counter does not depend on the clocks of the nodes', async t => {
  const { history, remember, risen } = await import(FIGURES)
  const HOUR_MS = 3_600_000
  /** Two seconds pass on the node that sends the overviews, and on the page. */
  const overview = (dropped: Record<string, number | null>, startedAt: Record<string, number> = {}) => {
    const at = 10 * HOUR_MS + history.length * 2_000
    remember({ at, receivedAt: at, nodes: Object.entries(dropped).map(([nodeId, value]) => ({ nodeId, startedAt: startedAt[nodeId] ?? 0, details: value === null ? null : { stats: { dropped: value } } })) })
  }
  const ahead = { ahead: 12 * HOUR_MS }
  overview({ here: 5, ahead: 100 }, ahead)
  t.match(risen('dropped'), { by: 0, lastAt: null }, 'what a node has counted before')
  overview({ here: 6, ahead: 101 }, ahead)
  t.match(risen('dropped'), { by: 2 })
  overview({ here: 6, ahead: null, started: 3, returned: 50 }, { ...ahead, started: 10 * HOUR_MS + 3_000 })
  t.match(risen('dropped'), { by: 5 }, 'a node that has started since is counted from 0, one that returns is not')
  overview({ here: 6, ahead: 104, started: 3, returned: 51 }, ahead)
  t.match(risen('dropped'), { by: 9, lastAt: 10 * HOUR_MS + 6_000 })
})
