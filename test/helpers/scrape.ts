/** One line of a scrape. */
export interface Series {
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

/** The series of a scrape in the text format of Prometheus. */
export function parseScrape (text: string): Series[] {
  return text.split('\n').filter(line => line !== '' && !line.startsWith('#')).map(line => {
    const [, name, labels = '', value] = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line)!
    return { name: name!, labels: Object.fromEntries(Array.from(labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g), ([, label, text]) => [label!, text!])), value: Number(value) }
  })
}

/** The sum of all series with this name that have these labels; undefined if there are none. */
export function valueOf (series: readonly Series[], name: string, labels: Record<string, string> = {}): number | undefined {
  const found = series.filter(one => one.name === name && Object.entries(labels).every(([label, value]) => one.labels[label] === value))
  return found.length === 0 ? undefined : found.reduce((sum, { value }) => sum + value, 0)
}
