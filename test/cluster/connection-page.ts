import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { compare, formatPosition, mergePages, parsePosition, resolveQuery, type NodePage, type Position } from '../../lib/cluster/connection-page.js'

// Pages of the connections of several nodes: one order, and no connection twice or on no page.

const LISTED = { userId: null, subscriptions: [], subscriptionCount: 0, managed: true, address: '', userAgent: '', resumed: null, lagging: false, queuedBytes: 0, sentEvents: 0, droppedEvents: 0 }

t.test('the order: the newest first, then by id; a position is its text', t => {
  const ordered: Position[] = [{ connectedAt: 9, clientId: 'b' }, { connectedAt: 8, clientId: 'a' }, { connectedAt: 8, clientId: 'b' }, { connectedAt: 8, clientId: 'b-' }, { connectedAt: 0, clientId: 'a' }]
  for (const [i, one] of ordered.entries()) {
    for (const [j, other] of ordered.entries()) t.equal(Math.sign(compare(one, other)), Math.sign(i - j), `${formatPosition(one)} ${formatPosition(other)}`)
    t.strictSame(parsePosition(formatPosition(one)), one)
  }
  t.equal(formatPosition(ordered[0]!), '9:b')
  t.end()
})

t.test('the bounds of a query', t => {
  const takes = (query: object) => {
    try {
      resolveQuery(query)
      return true
    } catch (error) {
      t.match(error, { code: 'SSE_ERR_INVALID_OPTION' })
      return false
    }
  }
  t.strictSame(resolveQuery({}), { limit: 100, after: null })
  for (const [key, longest] of [['clientId', 256], ['address', 64], ['subscription', 512]] as const) {
    t.strictSame([longest, longest + 1].map(length => takes({ [key]: 'x'.repeat(length) })), [true, false], key)
  }
  t.strictSame([0, 1, 1_000, 1_001].map(limit => takes({ limit })), [false, true, true, false])
  t.ok(takes({ userId: 'x'.repeat(10_000) }), 'user ids have no bound')
  for (const after of ['0:a', `${'9'.repeat(16)}:a`, `1:${'x'.repeat(64)}`, '1:A_z-9', null]) t.ok(takes({ after }), `${after}`)
  for (const after of ['', ':a', '1:', '1', 'a', 'x1:a', `${'9'.repeat(17)}:a`, `1:${'x'.repeat(65)}`, '1:a b', '1:a:b', '-1:a', '1.5:a', '1:a\n']) t.notOk(takes({ after }), after)
  t.end()
})

t.test('the page of all nodes ends where the first node that has more ends', async t => {
  const node = fc.uniqueArray(fc.nat(30), { maxLength: 12 })
  await t.resolves(fc.assert(fc.asyncProperty(fc.array(node, { minLength: 2, maxLength: 4 }), fc.integer({ min: 1, max: 6 }), async (ids, limit) => {
    // A connection is on one node; several are of the same time.
    const seen = new Set<number>()
    const nodes = ids.map((list, nodeId) => list.filter(id => !seen.has(id) && seen.add(id)).map(id => ({ ...LISTED, nodeId: `${nodeId}`, clientId: `c${id}`, connectedAt: id >> 2 })))
    const all = nodes.flat().sort(compare).map(({ clientId }) => clientId)
    const paged: string[] = []
    for (let after: string | null = null, pages = 0; ; pages++) {
      assert.ok(pages <= all.length + 1)
      const answers = nodes.map((list): NodePage => {
        const rest = list.filter(connection => after === null || compare(connection, parsePosition(after)) > 0).sort(compare)
        // A node may cut its page anywhere after the first.
        const connections = rest.slice(0, 1 + (limit * 7 + pages) % limit)
        return { connections, total: list.length, until: connections.length < rest.length ? formatPosition(connections.at(-1)!) : null }
      })
      const page: NodePage = answers.reduce(mergePages)
      assert.equal(page.total, all.length)
      paged.push(...page.connections.map(({ clientId }) => clientId))
      if (page.until === null) break
      assert.equal(page.until, formatPosition(page.connections.at(-1)!))
      after = page.until
    }
    assert.deepEqual(paged, all)
  }), { numRuns: 500 }))
})
