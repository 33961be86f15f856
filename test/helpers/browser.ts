import { existsSync } from 'node:fs'
import { chromium, type Page } from 'playwright-core'
import type { Test } from 'tap'

/** Where Chromium is. */
export const CHROMIUM = process.env['CHROMIUM'] ?? '/usr/bin/chromium'

/** Why tests with Chromium are skipped here; false if they run. With CI set, they run, and fail without it. */
export const withoutChromium = process.env['CI'] === undefined && !existsSync(CHROMIUM) && `no Chromium at ${CHROMIUM}`

/** Opens a page in Chromium; null if there is none. */
export async function browse (t: Test, url: string): Promise<Page | null> {
  if (withoutChromium !== false) {
    t.comment(withoutChromium)
    return null
  }
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-dev-shm-usage'] })
  t.teardown(() => browser.close())
  const page = await browser.newPage()
  await page.goto(url)
  return page
}
