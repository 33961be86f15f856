// Numbers, times and texts as the page shows them.

const number = new Intl.NumberFormat('en', { maximumFractionDigits: 1 })
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 })

export const count = value => typeof value !== 'number' ? '–' : Math.abs(value) < 100_000 ? number.format(value) : compact.format(value)

export const rate = value => value === null ? '–' : `${count(value < 10 ? Math.round(value * 10) / 10 : Math.round(value))}/s`

export function bytes (value) {
  if (typeof value !== 'number') return '–'
  const units = ['B', 'KB', 'MB', 'GB', 'TB']
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`
}

export function duration (ms) {
  const seconds = Math.max(0, Math.round(ms / 1000))
  if (seconds < 60) return `${seconds} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min${seconds % 60 === 0 ? '' : ` ${seconds % 60} s`}`
  const hours = Math.floor(seconds / 3600)
  return hours < 24 ? `${hours} h ${Math.floor(seconds % 3600 / 60)} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`
}

export const time = ms => new Date(ms).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'medium' })

/** Shows control characters, invisible ones and those that change the direction of writing by their number: a name could imitate another. */
export const visible = text => String(text).replace(/[\p{C}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}]/gu, character => `[U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}]`)

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`
