import { randomBytes } from 'node:crypto'
import type { PrivateMessage, RoomMessage, State } from './events.js'
import { TooFast } from './errors.js'
import { Activity } from './activity.js'
import { Conversations } from './conversation.js'
import type { LogSource } from './log-source.js'
import { Machine } from './machine.js'
import { Rate } from './rate.js'
import type { Sessions } from './sessions.js'
import { Tail } from './tail.js'
import { rooms, users, type User } from './users.js'

/** The shared state of the app: measurements, log file, messages and sessions. */
export class Board {
  /** Id of this process run. Sequence numbers restart with each run. */
  readonly run = randomBytes(6).toString('base64url')
  readonly machine = new Machine()
  readonly activity = new Activity()
  /** What the log box shows: a file, or the log of this app. */
  readonly log: LogSource
  readonly roomMessages = new Conversations<RoomMessage>()
  readonly privateMessages = new Conversations<PrivateMessage>()
  readonly #posts = new Rate(30, 5)

  constructor (readonly sessions: Sessions, logFile: string | null) {
    this.log = logFile === null ? this.activity : new Tail(logFile)
  }

  /** Returns what a page of this user shows of these subscriptions. Private messages belong to every page. */
  state (user: User, subscriptions: readonly string[]): State {
    const shows = (topic: string) => subscriptions.includes(topic)
    return {
      samples: shows('machine') ? this.machine.recent : [],
      log: shows('log') ? { seq: this.log.seq, lines: [...this.log.recent] } : null,
      messages: [
        ...rooms.filter(({ id }) => shows(`chat:${id}`)).flatMap(({ id }) => this.roomMessages.recent(id)),
        ...users.flatMap(({ id }) => this.privateMessages.recent(conversationOf(user.id, id)))
      ]
    }
  }

  /** Counts a post of a user. Throws TooFast if the user exceeds the rate limit. */
  post (user: User): void {
    if (!this.#posts.take(user.id)) throw new TooFast()
  }
}

/** Returns the name of the conversation of two users. The order of the users does not matter. */
export function conversationOf (a: string, b: string): string {
  return [a, b].sort().join('+')
}
