import { main } from '../../lib/cli/main.js'
import type { Report } from '../../lib/cli/doctor.js'
import type { Finding } from '../../lib/cli/finding.js'

export interface Ran {
  code: number
  out: string
  err: string
}

/** Runs a command line in this process. */
export async function run (args: readonly string[], { signal = new AbortController().signal, onOut = () => {} }: { signal?: AbortSignal, onOut?: (out: string) => void } = {}): Promise<Ran> {
  const ran = { code: -1, out: '', err: '' }
  ran.code = await main(args, {
    out (text) {
      ran.out += text
      onOut(ran.out)
    },
    err (text) { ran.err += text },
    signal
  })
  return ran
}

export interface Diagnosis extends Report {
  code: number
  /** The findings of a level, such as `problem`. */
  at (level: Finding['level']): readonly Finding[]
  /** The finding of a check. */
  of (check: Finding['check']): Finding | undefined
}

/** Runs `doctor --json`. The limits are long enough for a slow machine, and no answer comes later. */
export async function diagnose (url: string, ...args: string[]): Promise<Diagnosis> {
  const { code, out } = await run(['doctor', url, '--json', '--timeout', '30', ...args])
  const report: Report = JSON.parse(out)
  return { ...report, code, at: level => report.findings.filter(finding => finding.level === level), of: check => report.findings.find(finding => finding.check === check) }
}
