import type { Report } from './doctor.js'
import type { Level } from './finding.js'

const MARKS: Readonly<Record<Level, string>> = { ok: 'ok     ', note: 'note   ', skipped: 'skipped', warning: 'WARNING', problem: 'PROBLEM' }
const FAULTS = ['problem', 'warning'] as const

/** Returns a report as people read it: a sentence for each finding, what to change below it, and a count at the end. */
export function reportText ({ url, findings }: Report): string {
  const width = Math.max(...findings.map(({ check }) => check.length))
  const lines = findings.flatMap(({ check, level, text, change }) => [
    `${MARKS[level]}  ${check.padEnd(width)}  ${text}`,
    ...(change === undefined ? [] : [`${' '.repeat(width + 11)}change: ${change}`])
  ])
  const count = (level: Level): number => findings.filter(finding => finding.level === level).length
  const plural = (level: Level): string => `${count(level)} ${level}${count(level) === 1 ? '' : 's'}`
  const faults = FAULTS.filter(level => count(level) > 0).map(plural)
  const sum = [...(faults.length === 0 ? ['No problems'] : faults), ...(count('skipped') === 0 ? [] : [`${count('skipped')} skipped`])]
  return [url, '', ...lines, '', `${sum.join(', ')}.`, ''].join('\n')
}
