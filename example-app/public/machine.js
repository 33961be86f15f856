import { Sparkline } from './chart.js'
import { h } from './dom.js'

const GIB = 2 ** 30
const REMEMBERED_SAMPLES = 600
const number = (value, digits = 1) => value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits })

const METRICS = {
  cpu: {
    label: 'Processor',
    ceiling: 100,
    value: sample => sample.cpuPercent,
    shown: value => [number(value, 0), '%'],
    detail: sample => `${sample.cores} cores`
  },
  load: {
    label: 'Load',
    ceiling: 1,
    value: sample => sample.load[0],
    shown: value => [number(value, 2), ''],
    detail: sample => `5 min ${number(sample.load[1], 2)} · 15 min ${number(sample.load[2], 2)}`
  },
  memory: {
    label: 'Memory',
    ceiling: 1,
    value: sample => sample.memoryUsedBytes / GIB,
    shown: value => [number(value), 'GiB'],
    detail: sample => `of ${number(sample.memoryTotalBytes / GIB)} · process ${number(sample.processBytes / 2 ** 20, 0)} MiB`
  },
  delay: {
    label: 'Event-loop delay',
    ceiling: 5,
    value: sample => sample.delayP99Ms,
    shown: value => [number(value, 2), 'ms'],
    detail: sample => `p99 · median ${number(sample.delayP50Ms, 2)}`
  }
}

/** Shows four values of the server's machine, each with a chart of the last two minutes. */
export class MachinePanel {
  #tiles = []
  #seen = new Set()
  #lastAt = 0

  constructor (board) {
    for (const [name, metric] of Object.entries(METRICS)) {
      const tile = board.querySelector(`[data-metric=${name}]`)
      const chart = new Sparkline(tile.querySelector('.chart'), { label: metric.label, ceiling: metric.ceiling, format: value => metric.shown(value).join(' ') })
      this.#tiles.push({ metric, chart, output: tile.querySelector('output'), detail: tile.querySelector('.detail') })
    }
  }

  /** Adds earlier samples. Samples that were already received are ignored. */
  fill (samples) {
    for (const sample of samples) this.#add(sample)
    this.#draw()
  }

  show (sample) {
    this.#add(sample)
    this.#draw()
  }

  /** Marks a time during which the page was disconnected, by the clock of the server. */
  cut (from, to) {
    for (const { chart } of this.#tiles) chart.cut(from, to)
    this.#draw()
  }

  clear () {
    this.#seen.clear()
    this.#lastAt = 0
    for (const { chart } of this.#tiles) chart.clear()
  }

  #add (sample) {
    if (this.#seen.has(sample.seq)) return
    this.#seen.add(sample.seq)
    if (this.#seen.size > REMEMBERED_SAMPLES) this.#seen.delete(this.#seen.values().next().value)
    for (const { metric, chart } of this.#tiles) chart.add(sample.at, metric.value(sample), sample.replayed)
    if (sample.at < this.#lastAt) return
    this.#lastAt = sample.at
    for (const { metric, output, detail } of this.#tiles) {
      const [value, unit] = metric.shown(metric.value(sample))
      output.replaceChildren(value, unit === '' ? '' : h('small', {}, ` ${unit}`))
      detail.textContent = metric.detail(sample)
    }
  }

  #draw () {
    for (const { chart } of this.#tiles) chart.draw()
  }
}
