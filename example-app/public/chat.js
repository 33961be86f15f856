import { $, atEnd, avatar, call, clock, h } from './dom.js'

const SHOWN_MESSAGES = 200

/** Shows chat rooms and private conversations: a list of both, the messages of the selected one, and an input field. */
export class ChatPanel {
  #me
  #users
  #conversations = new Map()
  #current
  #isOn

  /**
   * Creates the panel.
   * @param subscribe (topic, on) => Promise
   * @param isOn (topic) => whether its switch is on, also while the server has not confirmed it
   */
  constructor ({ user, users, rooms }, { subscribe, isOn, failed }) {
    this.#me = user
    this.#users = users
    this.#isOn = isOn
    for (const room of rooms) this.#conversations.set(`chat:${room.id}`, { ...room, path: `/rooms/${room.id}/messages`, room: true, open: room.roles.includes(user.role), messages: [], unread: 0, joined: false })
    for (const other of users) {
      if (other.id === user.id) continue
      const pair = [user.id, other.id].sort().join('+')
      this.#conversations.set(`private:${pair}`, { id: other.id, title: other.name, about: `Only you and ${other.name} see this`, path: `/users/${other.id}/messages`, room: false, open: true, messages: [], unread: 0, joined: true })
    }
    $('rooms').replaceChildren(...this.#buttons(conversation => conversation.room))
    $('people').replaceChildren(...this.#buttons(conversation => !conversation.room))
    $('composer').onsubmit = event => { event.preventDefault(); this.#send().catch(failed) }
    $('conversation-joined').onchange = event => subscribe(this.#current, event.target.checked).catch(failed)
    this.choose('chat:general')
  }

  choose (name) {
    this.#current = name
    const conversation = this.#conversations.get(name)
    conversation.unread = 0
    for (const [other, { button }] of this.#conversations) button.setAttribute('aria-current', other === name ? 'true' : 'false')
    $('conversation-title').textContent = conversation.room ? `# ${conversation.title}` : conversation.title
    $('conversation-about').textContent = conversation.about
    $('conversation-switch').hidden = !conversation.room
    $('composer-text').setAttribute('placeholder', `Message ${conversation.room ? '#' + conversation.title : conversation.title}`)
    this.#render()
  }

  /** Updates the panel after a change of the subscriptions. */
  topics (topics) {
    for (const [name, conversation] of this.#conversations) if (conversation.room) conversation.joined = topics.has(name)
    this.#render()
  }

  presence (present) {
    for (const conversation of this.#conversations.values()) {
      if (conversation.room) continue
      conversation.button.toggleAttribute('data-present', present.includes(conversation.id))
      conversation.button.querySelector('.online').textContent = present.includes(conversation.id) ? ', online' : ''
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
      if (message.from !== this.#me.id) this.#conversations.get(name).unread++
      this.#renderConversations()
    } else {
      this.#append(message)
    }
  }

  clear () {
    for (const conversation of this.#conversations.values()) conversation.messages = []
    this.#render()
  }

  /** Adds a message, and returns the name of its room or conversation; null for a duplicate. */
  #add (message) {
    const name = message.room === undefined ? `private:${message.conversation}` : `chat:${message.room}`
    const { messages } = this.#conversations.get(name)
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
      await call('POST', this.#conversations.get(this.#current).path, { text })
    } catch (error) {
      if (field.value === '') field.value = text
      throw error
    }
  }

  #buttons (wanted) {
    return [...this.#conversations].filter(([, conversation]) => wanted(conversation)).map(([name, conversation]) => {
      const mark = conversation.room ? h('span', { class: 'hash', 'aria-hidden': 'true' }, '#') : avatar(conversation.id)
      conversation.badge = h('span', { class: 'badge' })
      conversation.button = h('button', { type: 'button', onclick: () => this.choose(name) },
        mark, h('span', { class: 'name' }, conversation.title), conversation.room ? null : h('span', { class: 'online hidden' }), conversation.badge)
      return h('li', {}, conversation.button)
    })
  }

  #renderConversations () {
    for (const { button, badge, unread, joined } of this.#conversations.values()) {
      badge.textContent = unread === 0 ? '' : String(unread)
      badge.setAttribute('aria-label', unread === 0 ? '' : `${unread} unread`)
      button.toggleAttribute('data-left', !joined)
    }
  }

  #render () {
    this.#renderConversations()
    const conversation = this.#conversations.get(this.#current)
    const list = $('messages')
    const follow = atEnd(list) || list.dataset.conversation !== this.#current
    list.dataset.conversation = this.#current
    $('conversation-joined').checked = this.#isOn(this.#current)
    $('conversation-joined').disabled = !conversation.open
    for (const control of $('composer').elements) control.disabled = !conversation.joined
    if (!conversation.joined) {
      list.replaceChildren(h('div', { class: 'empty' }, conversation.open ? 'You are not subscribed to this room. Switch “Subscribed” on: the open connection is used.' : 'This room is closed to guests: the server rejects the subscription.'))
    } else if (conversation.messages.length === 0) {
      list.replaceChildren(h('div', { class: 'empty' }, conversation.room ? 'No messages yet.' : conversation.about + '.'))
    } else {
      list.replaceChildren(...conversation.messages.map(message => this.#element(message)))
    }
    if (follow) list.scrollTop = list.scrollHeight
  }

  /** Appends one message without rendering the others again, so that a screen reader reads only the new one. */
  #append (message) {
    const conversation = this.#conversations.get(this.#current)
    const list = $('messages')
    if (!conversation.joined || conversation.messages.length < 2 || conversation.messages.at(-1) !== message) return this.#render()
    const follow = atEnd(list)
    list.append(this.#element(message))
    while (list.childElementCount > conversation.messages.length) list.firstElementChild.remove()
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
