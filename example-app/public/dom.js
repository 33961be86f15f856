// Functions to create DOM elements. Text is always inserted as text, never as HTML.

export const $ = id => document.getElementById(id)

/** Creates an element: h('p', { class: 'note' }, 'text', otherElement). */
export function h (name, attributes = {}, ...children) {
  const element = document.createElement(name)
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value)
    else if (key in element && typeof value !== 'string') element[key] = value
    else element.setAttribute(key, value === true ? '' : value)
  }
  element.append(...children.filter(child => child !== null))
  return element
}

const SVG = 'http://www.w3.org/2000/svg'

export function svg (name, attributes = {}) {
  const element = document.createElementNS(SVG, name)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  return element
}

export function avatar (userId) {
  return h('span', { class: 'avatar', 'data-user': userId, 'aria-hidden': 'true' }, userId.slice(0, 1).toUpperCase())
}

const clockFormat = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false })

export function clock (at = Date.now()) {
  return clockFormat.format(at)
}

export function plural (count, one, many = one + 's') {
  return `${count} ${count === 1 ? one : many}`
}

/** Returns whether the element is scrolled to its end. */
export function atEnd (element) {
  return element.scrollHeight - element.scrollTop - element.clientHeight < 40
}

/** Sends a request to the board, and returns the JSON of the response. Throws an error with the server's message. */
export async function call (method, path, body) {
  const response = await fetch(path, {
    method,
    ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) })
  })
  const answer = await response.json().catch(() => ({}))
  if (!response.ok) throw new Error(answer.message ?? `${response.status} ${response.statusText}`)
  return answer
}
