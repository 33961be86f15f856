/* global ResizeObserver */
import { svg } from './dom.js'

const WINDOW_MS = 120_000
/** Points that are further apart than this, in milliseconds, are not connected by a line. */
const HOLE_MS = 2_500

/** Draws the last two minutes of a value as a line. Replayed points have another colour. */
export class Sparkline {
  #points = []
  #cuts = []
  #root
  #label
  #ceiling
  #format

  /** Creates the chart. @param ceiling minimum of the upper end of the scale @param format formats values of the ARIA label */
  constructor (container, { label, ceiling, format }) {
    this.#label = label
    this.#ceiling = ceiling
    this.#format = format
    this.#root = svg('svg', { role: 'img', 'aria-label': label })
    container.replaceChildren(this.#root)
    new ResizeObserver(() => this.draw()).observe(container)
  }

  add (at, value, replayed = false) {
    this.#points.push({ at, value, replayed })
    if (this.#points.length > 1 && at < this.#points.at(-2).at) this.#points.sort((a, b) => a.at - b.at)
    const oldest = this.#points.at(-1).at - WINDOW_MS
    while (this.#points[0].at < oldest) this.#points.shift()
  }

  /** Marks a time during which the page was disconnected. */
  cut (from, to) {
    this.#cuts.push({ from, to })
    if (this.#cuts.length > 10) this.#cuts.shift()
  }

  clear () {
    this.#points = []
    this.#cuts = []
    this.draw()
  }

  get peak () {
    return this.#points.reduce((peak, { value }) => Math.max(peak, value), 0)
  }

  draw () {
    const { clientWidth: width, clientHeight: height } = this.#root
    if (width === 0 || this.#points.length === 0) return this.#root.replaceChildren()
    this.#root.setAttribute('viewBox', `0 0 ${width} ${height}`)
    const last = this.#points.at(-1)
    const top = Math.max(this.#ceiling, this.peak * 1.1)
    const x = at => Math.round((width - 6 + (at - last.at) / WINDOW_MS * width) * 10) / 10
    const y = value => Math.round((height - 2 - value / top * (height - 8)) * 10) / 10
    const elements = [svg('line', { class: 'rule', x1: 0, x2: width, y1: y(top / 2), y2: y(top / 2) })]
    for (const { from, to } of this.#cuts) {
      if (to > last.at - WINDOW_MS) elements.push(svg('rect', { class: 'cut', x: x(from), y: 0, width: Math.max(2, x(to) - x(from)), height }))
    }
    for (const run of runs(this.#points, (a, b) => b.at - a.at <= HOLE_MS)) {
      const line = path(run, x, y)
      elements.push(svg('path', { class: 'area', d: `${line}V${height}H${x(run[0].at)}Z` }))
      elements.push(svg('path', { class: 'line', d: line }))
    }
    for (const run of runs(this.#points, (a, b) => a.replayed && b.replayed && b.at - a.at <= HOLE_MS)) {
      if (run[0].replayed) elements.push(svg('path', { class: 'replayed', d: path(run, x, y) }))
    }
    elements.push(svg('circle', { class: 'now', cx: x(last.at), cy: y(last.value), r: 3 }))
    this.#root.setAttribute('aria-label', `${this.#label}, last two minutes: now ${this.#format(last.value)}, at most ${this.#format(this.peak)}`)
    this.#root.replaceChildren(...elements)
  }
}

function path (points, x, y) {
  // A single point is drawn as a dot.
  const steps = points.length === 1 ? [points[0], points[0]] : points
  return 'M' + steps.map(({ at, value }) => `${x(at)} ${y(value)}`).join('L')
}

/** Splits the points into runs of adjacent points for which `together` returns true. */
function runs (points, together) {
  const found = [[points[0]]]
  for (let i = 1; i < points.length; i++) {
    if (together(points[i - 1], points[i])) found.at(-1).push(points[i])
    else found.push([points[i]])
  }
  return found
}
