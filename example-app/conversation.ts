const KEPT_MESSAGES = 100

/** The last messages of each room or pair, numbered without holes, for a page that has just come. */
export class Conversations<Message extends { seq: number, at: number }> {
  readonly #all = new Map<string, { seq: number, messages: Message[] }>()

  add (name: string, message: Omit<Message, 'seq' | 'at'>): Message {
    let conversation = this.#all.get(name)
    if (conversation === undefined) this.#all.set(name, conversation = { seq: 0, messages: [] })
    const added = { ...message, seq: ++conversation.seq, at: Date.now() } as Message
    conversation.messages.push(added)
    if (conversation.messages.length > KEPT_MESSAGES) conversation.messages.shift()
    return added
  }

  recent (name: string): readonly Message[] {
    return this.#all.get(name)?.messages ?? []
  }
}
