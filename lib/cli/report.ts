import type { Report } from './doctor.js'
import type { Level } from './finding.js'

const MARKS: Readonly<Record<Level, string>> = { ok: 'ok     ', note: 'note   ', warning: 'WARNING', problem: 'PROBLEM' }
const NUMBERS = ['problem', 'warning'] as const

/** Returns a report as people read it: a sentence for each finding, what to change below it, and a count at the end. */
export function reportText ({ url, findings }: Report): string {
  const width = Math.max(...findings.map(({ check }) => check.length))
  const lines = findings.flatMap(({ check, level, text, change }) => [
    `${MARKS[level]}  ${check.padEnd(width)}  ${text}`,
    ...(change === undefined ? [] : [`${' '.repeat(width + 11)}change: ${change}`])
  ])
  const counts = NUMBERS.map(level => [level, findings.filter(finding => finding.level === level).length] as const)
  const sum = counts.filter(([, count]) => count > 0).map(([level, count]) => `${count} ${level}${count === 1 ? '' : 's'}`)
  return [url, '', ...lines, '', sum.length === 0 ? 'No problems.' : `${sum.join(', ')}.`, ''].join('\n')
}
