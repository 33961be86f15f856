import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'

/** Where the package has been built: `dist/esm`, or BENCH_BUILD. */
export const build = process.env.BENCH_BUILD === undefined
  ? new URL('../dist/esm/', import.meta.url)
  : pathToFileURL(resolve(process.env.BENCH_BUILD) + '/')
