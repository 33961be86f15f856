import { $, atEnd, avatar, call, clock, h } from './dom.js'

const SHOWN_MESSAGES = 200

/** Shows chat rooms and private conversations: a list of both, the messages of the selected one, and an input field. */
export class ChatPanel {
  #me
  #users
  #places = new Map()
  #current
  #subscribe

  /** Creates the panel. @param subscribe (topic, wanted) => Promise */
  constructor ({ user, users, rooms }, { subscribe, failed }) {
    this.#me = user
    this.#users = users
    this.#subscribe = subscribe
    for (const room of rooms) this.#places.set(`chat:${room.id}`, { ...room, path: `/rooms/${room.id}/messages`, room: true, open: room.roles.includes(user.role), messages: [], unread: 0, joined: false })
    for (const other of users) {
      if (other.id === user.id) continue
      const conversation = [user.id, other.id].sort().join('+')
      this.#places.set(`private:${conversation}`, { id: other.id, title: other.name, about: `Only you and ${other.name} see this`, path: `/users/${other.id}/messages`, room: false, open: true, messages: [], unread: 0, joined: true })
    }
    $('rooms').replaceChildren(...this.#buttons(place => place.room))
    $('people').replaceChildren(...this.#buttons(place => !place.room))
    $('composer').onsubmit = event => { event.preventDefault(); this.#send().catch(failed) }
    $('place-joined').onchange = event => {
      const { checked } = event.target
      this.#subscribe(this.#current, checked).catch(error => { event.target.checked = !checked; failed(error) })
    }
    this.choose('chat:general')
  }

  choose (name) {
    this.#current = name
    const place = this.#places.get(name)
    place.unread = 0
    for (const [other, { button }] of this.#places) button.setAttribute('aria-current', other === name ? 'true' : 'false')
    $('place-title').textContent = place.room ? `# ${place.title}` : place.title
    $('place-about').textContent = place.about
    $('place-switch').hidden = !place.room
    $('composer-text').setAttribute('placeholder', `Message ${place.room ? '#' + place.title : place.title}`)
    this.#render()
  }

  /** Updates the panel after a change of the subscriptions. */
  topics (topics) {
    for (const [name, place] of this.#places) if (place.room) place.joined = topics.has(name)
    this.#render()
  }

  presence (present) {
    for (const place of this.#places.values()) {
      if (place.room) continue
      place.button.toggleAttribute('data-present', present.includes(place.id))
      place.button.querySelector('.online').textContent = present.includes(place.id) ? ', online' : ''
    }
  }

  fill (messages) {
    for (const message of messages) this.#add(message)
    this.#render()
  }

  show (message) {
    const name = this.#add(message)
    if (name === null) return
    if (name !== this.#current) {
      if (message.from !== this.#me.id) this.#places.get(name).unread++
      this.#renderPlaces()
    } else {
      this.#append(message)
    }
  }

  clear () {
    for (const place of this.#places.values()) place.messages = []
    this.#render()
  }

  /** Adds a message, and returns the name of its room or conversation; null for a duplicate. */
  #add (message) {
    const name = message.room === undefined ? `private:${message.conversation}` : `chat:${message.room}`
    const { messages } = this.#places.get(name)
    if (messages.some(({ seq }) => seq === message.seq)) return null
    messages.push(message)
    if (messages.length > 1 && message.seq < messages.at(-2).seq) messages.sort((a, b) => a.seq - b.seq)
    if (messages.length > SHOWN_MESSAGES) messages.shift()
    return name
  }

  async #send () {
    const field = $('composer-text')
    const text = field.value
    if (text.trim() === '') return
    field.value = ''
    try {
      await call('POST', this.#places.get(this.#current).path, { text })
    } catch (error) {
      if (field.value === '') field.value = text
      throw error
    }
  }

  #buttons (wanted) {
    return [...this.#places].filter(([, place]) => wanted(place)).map(([name, place]) => {
      const mark = place.room ? h('span', { class: 'hash', 'aria-hidden': 'true' }, '#') : avatar(place.id)
      place.badge = h('span', { class: 'badge' })
      place.button = h('button', { type: 'button', onclick: () => this.choose(name) },
        mark, h('span', { class: 'name' }, place.title), place.room ? null : h('span', { class: 'online hidden' }), place.badge)
      return h('li', {}, place.button)
    })
  }

  #renderPlaces () {
    for (const { button, badge, unread, joined } of this.#places.values()) {
      badge.textContent = unread === 0 ? '' : String(unread)
      badge.setAttribute('aria-label', unread === 0 ? '' : `${unread} unread`)
      button.toggleAttribute('data-left', !joined)
    }
  }

  #render () {
    this.#renderPlaces()
    const place = this.#places.get(this.#current)
    const list = $('messages')
    const follow = atEnd(list) || list.dataset.place !== this.#current
    list.dataset.place = this.#current
    $('place-joined').checked = place.joined
    $('place-joined').disabled = !place.open
    for (const control of $('composer').elements) control.disabled = !place.joined
    if (!place.joined) {
      list.replaceChildren(h('div', { class: 'empty' }, place.open ? 'You do not listen to this room. Switch “Subscribed” on, and it comes alive without a new connection.' : 'This room is closed to guests: the server refuses the subscription.'))
    } else if (place.messages.length === 0) {
      list.replaceChildren(h('div', { class: 'empty' }, place.room ? 'Nothing said here yet. Say something, and every subscribed tab has it at once.' : place.about + '.'))
    } else {
      list.replaceChildren(...place.messages.map(message => this.#element(message)))
    }
    if (follow) list.scrollTop = list.scrollHeight
  }

  /** Appends one message without rendering the others again, so that a screen reader reads only the new one. */
  #append (message) {
    const place = this.#places.get(this.#current)
    const list = $('messages')
    if (!place.joined || place.messages.length < 2 || place.messages.at(-1) !== message) return this.#render()
    const follow = atEnd(list)
    list.append(this.#element(message))
    while (list.childElementCount > place.messages.length) list.firstElementChild.remove()
    if (follow) list.scrollTop = list.scrollHeight
  }

  #element ({ from, at, text, replayed }) {
    const name = this.#users.find(({ id }) => id === from)?.name ?? from
    return h('div', { class: 'message', 'data-replayed': replayed === true },
      avatar(from),
      h('span', { class: 'meta' }, h('strong', {}, name), ` ${clock(at)} `, replayed ? h('span', { class: 'tag' }, 'replayed') : null),
      h('p', {}, text))
  }
}
