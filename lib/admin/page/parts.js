// Parts that several sections use.

import { h } from './dom.js'
import { visible } from './format.js'

/** A text that a client or the application has chosen: its direction of writing does not change that of the page. */
export const text = value => h('bdi', null, visible(value))

export const user = userId => userId === null ? h('i', null, 'anonymous') : text(userId)

export const badge = (level, content) => h('span', { class: `badge ${level}` }, content)

/** A line of figures, newest on the right; gaps stay open. */
export function chart (values, label) {
  const known = values.filter(value => typeof value === 'number')
  const most = Math.max(1, ...known)
  const width = Math.max(30, values.length)
  const points = values.map((value, index) => typeof value === 'number' ? [width - values.length + index + 0.5, 29 - 27 * value / most] : null)
  const path = points.map((point, index) => point === null ? '' : `${index === 0 || points[index - 1] === null ? 'M' : 'L'}${point[0].toFixed(1)} ${point[1].toFixed(1)}`).join('')
  return h('svg', { class: 'chart', viewBox: `0 0 ${width} 30`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label }, h('path', { d: path }))
}

/** A table; on a narrow screen each row becomes a list of names and values. `columns`: [heading, cell, numeric] */
export function table (caption, columns, rows, { key, empty = 'Nothing to show.' } = {}) {
  if (rows.length === 0) return h('p', { class: 'empty' }, empty)
  return h('table', null,
    h('caption', null, caption),
    h('thead', null, h('tr', null, columns.map(([heading, , numeric]) => h('th', { scope: 'col', class: numeric ? 'number' : undefined }, heading)))),
    h('tbody', null, rows.map((row, index) => h('tr', { key: key?.(row) ?? String(index) }, columns.map(([heading, cell, numeric]) => h('td', { 'data-label': heading, class: numeric ? 'number' : undefined }, h('span', null, cell(row))))))))
}

export const section = (title, ...children) => h('section', { key: title }, h('h2', null, title), children)

/** A link to a section, with parameters. */
export const link = (name, parameters, ...children) => h('a', { href: href(name, parameters) }, children)

export const href = (name, parameters = {}) => {
  const query = new URLSearchParams(parameters).toString()
  return `#/${name}${query === '' ? '' : `?${query}`}`
}
