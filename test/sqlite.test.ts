import t from 'tap'
import { DRIVERS, withoutSQLite } from './docs/sqlite.js'

// Node.js 20, on which all samples are run, has no SQLite.
for (const [name, driver] of Object.entries(DRIVERS)) t.test(name, { skip: withoutSQLite }, driver)
