// Elements as plain objects, and a function that changes a part of the document to match them. Elements that stay are kept, so that focus,
// selection and the position of the page survive each update. Texts are set as text: nothing that a client has chosen becomes markup.

const SVG = 'http://www.w3.org/2000/svg'

/** Describes an element. Properties that begin with `on` are listeners, `key` identifies it among its siblings. */
export function h (tag, properties, ...children) {
  return { tag, properties: properties ?? {}, children: children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false) }
}

/** Makes the children of an element match descriptions. */
export function render (parent, children) {
  const known = new Map()
  for (const node of parent.childNodes) if (node.described?.key !== undefined) known.set(node.described.key, node)
  let next = parent.firstChild
  for (const child of children) {
    const isText = typeof child !== 'object'
    let node = isText ? next : known.get(child.properties.key) ?? next
    if (!matches(node, child)) {
      node = isText ? document.createTextNode('') : create(child.tag)
    }
    if (node !== next) parent.insertBefore(node, next)
    else next = next.nextSibling
    if (isText) {
      if (node.data !== String(child)) node.data = String(child)
    } else {
      update(node, child)
    }
  }
  while (next !== null) {
    const rest = next.nextSibling
    next.remove()
    next = rest
  }
}

function matches (node, child) {
  if (node === null || node === undefined) return false
  if (typeof child !== 'object') return node.nodeType === Node.TEXT_NODE
  return node.described !== undefined && node.localName === child.tag && node.described.key === child.properties.key
}

function create (tag) {
  const node = tag === 'svg' || tag === 'path' ? document.createElementNS(SVG, tag) : document.createElement(tag)
  node.described = {}
  return node
}

function update (node, { properties, children }) {
  const before = node.described
  for (const name of new Set([...Object.keys(before), ...Object.keys(properties)])) {
    const value = properties[name]
    if (before[name] === value || name === 'key') continue
    if (name.startsWith('on')) node[name] = value ?? null
    else if (name === 'value' || name === 'checked') node[name] = value
    else if (value === undefined || value === null || value === false) node.removeAttribute(name)
    else node.setAttribute(name, value === true ? '' : value)
  }
  node.described = properties
  render(node, children)
}
