import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { Capacity, type Reservation } from '../../lib/access/capacity.js'

const limit = fc.constantFrom(0, 1, 2, 3)
const step = fc.oneof(
  fc.record({ do: fc.constant('take' as const), ip: fc.constantFrom('192.0.2.1', '192.0.2.2', undefined) }),
  fc.record({ do: fc.constant('assign' as const), at: fc.nat(9), userId: fc.constantFrom('ada', 'grace', null) }),
  fc.record({ do: fc.constant('leave' as const), at: fc.nat(9) }))

interface Taken { reservation: Reservation, ip: string, userId: string | null, left: boolean }

t.test('limits are exact, and each client is counted once: in total, for its user and for its address', t => {
  t.doesNotThrow(() => fc.assert(fc.property(limit, limit, limit, fc.array(step, { maxLength: 60, size: 'max' }), (maxConnections, maxConnectionsPerUser, maxConnectionsPerIp, steps) => {
    const capacity = new Capacity({ maxConnections, maxConnectionsPerUser, maxConnectionsPerIp })
    const all: Taken[] = []
    const here = () => all.filter(({ left }) => !left)
    const counts = (key: 'ip' | 'userId') => {
      const map = new Map<string, number>()
      for (const { [key]: value } of here()) if (value !== null) map.set(value, (map.get(value) ?? 0) + 1)
      return map
    }
    const fault = (run: () => unknown) => {
      try {
        run()
        return null
      } catch (error) {
        return (error as { code: string }).code
      }
    }
    for (const step of steps) {
      if (step.do === 'take') {
        const ip = step.ip ?? ''
        const expected = maxConnections > 0 && here().length >= maxConnections
          ? 'SSE_ERR_TOO_MANY_CONNECTIONS'
          : maxConnectionsPerIp > 0 && (counts('ip').get(ip) ?? 0) >= maxConnectionsPerIp ? 'SSE_ERR_TOO_MANY_IP_CONNECTIONS' : null
        let reservation: Reservation | null = null
        assert.equal(fault(() => { reservation = capacity.take(step.ip) }), expected)
        if (reservation !== null) all.push({ reservation, ip, userId: null, left: false })
        else assert.ok(expected !== null || maxConnections + maxConnectionsPerUser + maxConnectionsPerIp === 0)
      } else if (all.length > 0) {
        const taken = all[step.at % all.length]!
        if (step.do === 'leave') {
          taken.reservation.leave()
          taken.left = true
        } else {
          const counted = maxConnectionsPerUser > 0 && !taken.left && step.userId !== taken.userId
          const full = counted && step.userId !== null && (counts('userId').get(step.userId) ?? 0) >= maxConnectionsPerUser
          assert.equal(fault(() => taken.reservation.assign(step.userId)), full ? 'SSE_ERR_TOO_MANY_USER_CONNECTIONS' : null)
          if (counted && !full) taken.userId = step.userId
        }
        assert.equal(taken.reservation.left, taken.left)
      }
      assert.equal(capacity.taken, here().length)
      assert.deepEqual(capacity.perUser, counts('userId'))
      assert.deepEqual(capacity.perAddress, maxConnectionsPerIp > 0 ? counts('ip') : new Map())
    }
    for (const { reservation } of all) reservation.leave()
    assert.deepEqual([capacity.taken, capacity.perUser.size, capacity.perAddress.size], [0, 0, 0])
  }), { numRuns: 1_000 }))
  t.end()
})
