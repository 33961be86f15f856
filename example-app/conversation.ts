const KEPT_MESSAGES = 100

/** Keeps the last messages of each chat room and of each pair of users, for newly loaded pages. Sequence numbers have no gaps. */
export class Conversations<Message extends { seq: number, at: number }> {
  readonly #all = new Map<string, { seq: number, messages: Message[] }>()

  /** Adds a message, and returns it with its sequence number and time. */
  add (name: string, message: Omit<Message, 'seq' | 'at'>): Message {
    let conversation = this.#all.get(name)
    if (conversation === undefined) this.#all.set(name, conversation = { seq: 0, messages: [] })
    const added = { ...message, seq: ++conversation.seq, at: Date.now() } as Message
    conversation.messages.push(added)
    if (conversation.messages.length > KEPT_MESSAGES) conversation.messages.shift()
    return added
  }

  /** Returns the last messages of a conversation, oldest first. */
  recent (name: string): readonly Message[] {
    return this.#all.get(name)?.messages ?? []
  }
}
