import { isBuiltin } from 'node:module'
import { join } from 'node:path'
import { openStream } from '../../lib/testing/index.js'
import { at, run, visit, type Drivers } from '../helpers/samples.js'

export const withoutSQLite = !isBuiltin('node:sqlite') && `no node:sqlite in Node.js ${process.version}`

/** Of the sample in docs/recipes/database.md. */
export const DRIVERS: Drivers = {
  async sqlite (t) {
    if (withoutSQLite !== false) return t.comment(withoutSQLite)
    const file = join(t.testdir({}), 'orders.db')
    const { app, db } = await run(t, {}, ['app', 'db'], text => text.replace("'orders.db'", JSON.stringify(file)))
    t.teardown(async () => {
      await app.close()
      db.close()
    })
    const url = `${at(app.server)}/orders`
    const order = async (id: string, count: number) => await app.inject({ method: 'POST', url: `/orders/${id}`, payload: { count } })
    t.same((await order('1', 3)).json(), { id: '1', item: 'tea', count: 3, version: 1 })
    const stream = await visit(t, url)
    t.same((await stream.next('orders')).json, [{ id: '1', item: 'tea', count: 3, version: 1 }])

    t.equal((await order('2', 8)).statusCode, 409)
    await Promise.all([order('1', 2), order('1', 1), order('3', 1)])
    t.same((await stream.collect(3, 'order')).map(({ json }) => json), [
      { id: '1', item: 'tea', count: 5, version: 2 },
      { id: '1', item: 'tea', count: 6, version: 3 },
      { id: '3', item: 'tea', count: 1, version: 1 }
    ], 'in the order of the commits, and nothing of what was rolled back')
    t.same({ ...db.prepare('SELECT count FROM stock').get() }, { count: 3 })

    // The process stops after a commit. Its log in memory ends with it: another epoch.
    db.exec("UPDATE orders SET count = 7, version = version + 1 WHERE id = '1'")
    const returning = await openStream(app, '/orders', { test: t, lastEventId: 'k3f9x2ab.2s' })
    t.match((await returning.next('sse:gap')).json, { reason: 'epoch', snapshot: true })
    t.match((await returning.next('orders')).json, [{ id: '1', count: 7, version: 4 }, { id: '3' }])
  }
}
