import { $, call, clock, h } from './dom.js'

const TOAST_MS = 8_000
const QUESTION_MS = 30_000
const MOST_TOASTS = 3
const KEPT_NOTICES = 30

/** Shows a form to send notifications, a toast for each received notification, and a list of them. */
export class NoticePanel {
  #failed
  #form = $('notify')

  constructor ({ user, users }, { failed }) {
    this.#failed = failed
    $('notify-to').replaceChildren(h('option', { value: '' }, 'Everyone'), ...users.map(({ id, name }) => h('option', { value: id }, `Only ${name}`)))
    this.#form.onsubmit = event => { event.preventDefault(); this.#send().catch(failed) }
    const guest = user.role === 'guest'
    for (const control of this.#form.elements) control.disabled = guest
    $('notify-note').hidden = !guest
    $('notice-list').replaceChildren()
  }

  show ({ title, message, level, actions = [], replayed }) {
    const list = $('notice-list')
    list.prepend(h('li', { 'data-level': level },
      h('strong', {}, title, ' ', replayed ? h('span', { class: 'tag' }, 'replayed') : null),
      h('time', {}, clock()),
      h('p', {}, message)))
    while (list.childElementCount > KEPT_NOTICES) list.lastElementChild.remove()
    this.toast({ title, message, level, actions })
  }

  toast ({ title, message, level, actions = [] }) {
    const toasts = $('toasts')
    const toast = h('div', { class: 'toast', 'data-level': level, role: level === 'error' ? 'alert' : null },
      h('strong', {}, title),
      h('button', { type: 'button', class: 'quiet close', 'aria-label': 'Dismiss', onclick: () => toast.remove() }, '×'),
      h('p', {}, message))
    const known = actions.filter(({ action }) => action === 'acknowledge')
    if (known.length > 0) {
      toast.append(h('div', { class: 'actions' }, ...known.map(({ label }) => h('button', { type: 'button', onclick: () => this.#acknowledge(title, toast) }, label))))
    }
    toasts.append(toast)
    while (toasts.childElementCount > MOST_TOASTS) toasts.firstElementChild.remove()
    // A toast with the pointer or the focus stays visible.
    const fade = () => {
      if (toast.matches(':hover, :focus-within')) setTimeout(fade, TOAST_MS)
      else toast.remove()
    }
    setTimeout(fade, known.length > 0 ? QUESTION_MS : TOAST_MS)
  }

  async #acknowledge (title, toast) {
    toast.remove()
    await call('POST', '/acknowledge', { title }).catch(this.#failed)
  }

  async #send () {
    const form = new FormData(this.#form)
    const to = form.get('to')
    await call('POST', '/notify', {
      title: form.get('title'),
      message: form.get('message'),
      level: form.get('level'),
      acknowledge: form.has('acknowledge'),
      ...(to === '' ? {} : { to })
    })
  }
}
