import { readFileSync } from 'node:fs'

const { exports } = JSON.parse(readFileSync(new URL('package.json', import.meta.url), 'utf8'))

/** The API reference: a page for each entry point, made from the doc-comments by `npm run build:api`. */
export default {
  entryPoints: Object.values(exports).flatMap(({ import: entry }) => entry?.types.replace('./dist/esm/', '').replace('.d.ts', '.ts') ?? []),
  tsconfig: 'tsconfig.build.json',
  plugin: ['typedoc-plugin-markdown'],
  out: 'docs/reference/api',
  router: 'module',
  readme: 'none',
  hideBreadcrumbs: true,
  hidePageHeader: true,
  // The place of the source is not known yet: see the release checklist in CONTRIBUTING.md.
  disableSources: true,
  githubPages: false,
  excludeInternal: true,
  excludePrivate: true,
  excludeProtected: true,
  excludeExternals: true,
  // The compiler has checked the files before.
  skipErrorChecking: true,
  validation: { notExported: false },
  treatWarningsAsErrors: true,
  logLevel: 'Warn'
}
