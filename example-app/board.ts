import { randomBytes } from 'node:crypto'
import type { PrivateMessage, RoomMessage } from './events.js'
import { TooFast } from './errors.js'
import { Conversations } from './conversation.js'
import { Machine } from './machine.js'
import { Rate } from './rate.js'
import type { Sessions } from './sessions.js'
import { Tail } from './tail.js'
import type { User } from './users.js'

/** What the parts of the app share: the things it watches and what was said. */
export class Board {
  /** One life of this process: numbering starts again with each. */
  readonly run = randomBytes(6).toString('base64url')
  readonly machine = new Machine()
  readonly tail: Tail | null
  readonly roomMessages = new Conversations<RoomMessage>()
  readonly privateMessages = new Conversations<PrivateMessage>()
  readonly #posts = new Rate(30, 5)

  constructor (readonly sessions: Sessions, logFile: string | null) {
    this.tail = logFile === null ? null : new Tail(logFile)
  }

  /** Throws unless `user` has not posted too much of late. */
  post (user: User): void {
    if (!this.#posts.take(user.id)) throw new TooFast()
  }
}

/** The name of the conversation of two users, the same for both. */
export function conversationOf (a: string, b: string): string {
  return [a, b].sort().join('+')
}
