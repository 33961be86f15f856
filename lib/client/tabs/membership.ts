import { watchFreeze, type Locks } from './browser.js'
import type { SentMessage } from './messages.js'
import { LeaderLock } from './leader-lock.js'

/** What happens to a tab in its group. */
export interface Member {
  receive (message: SentMessage): void
  /** This tab reads for all from now on. */
  lead (): void
  /** This tab does not read any more. */
  follow (): void
}

/** What a tab has while it belongs to its group: a channel to the others, and a lock that shows them that it exists. */
export class Membership {
  /** Another one each time: what concerns an earlier membership can arrive late. */
  readonly tab = crypto.randomUUID()
  readonly lock: LeaderLock
  /** Whether the others see that this tab exists: false if the page may not use locks. */
  readonly isSeen: Promise<boolean>
  readonly #channel: InstanceType<typeof BroadcastChannel>
  readonly #end = new AbortController()

  constructor (locks: Locks, name: string, member: Member) {
    this.#channel = new BroadcastChannel(name)
    this.#channel.onmessage = ({ data }) => member.receive(data as SentMessage)
    const lock = this.lock = new LeaderLock(locks, name, isHeld => isHeld ? member.lead() : member.follow())
    lock.wait()
    const { signal } = this.#end
    this.isSeen = new Promise(resolve => {
      locks.request(lifeOf(name, this.tab), {}, () => {
        resolve(true)
        return new Promise(resolve => signal.addEventListener('abort', () => resolve()))
      }).catch(() => resolve(false))
    })
    // A frozen page still answers messages, but its requests stand still.
    watchFreeze(signal, () => {
      lock.leave()
      member.follow()
    }, () => lock.wait())
  }

  post (message: SentMessage): void {
    this.#channel.postMessage(message)
  }

  leave (): void {
    this.lock.leave()
    this.#end.abort()
    this.#channel.close()
  }
}

/** The name of the lock that a tab of this group holds while it exists. */
export function lifeOf (group: string, tab: string): string {
  return `${group} ${tab}`
}
