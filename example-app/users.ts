export type Role = 'admin' | 'operator' | 'guest'

export interface User {
  readonly id: string
  readonly name: string
  readonly role: Role
}

/** The demo users. They have no passwords: the demo listens on loopback by default. */
export const users: readonly User[] = [
  { id: 'ada', name: 'Ada', role: 'admin' },
  { id: 'grace', name: 'Grace', role: 'operator' },
  { id: 'alan', name: 'Alan', role: 'operator' },
  { id: 'guest', name: 'Guest', role: 'guest' }
]

export interface Room {
  readonly id: string
  readonly title: string
  readonly about: string
  readonly roles: readonly Role[]
}

export const rooms: readonly Room[] = [
  { id: 'general', title: 'General', about: 'Everyone', roles: ['admin', 'operator', 'guest'] },
  { id: 'deploys', title: 'Deploys', about: 'What goes out, and when', roles: ['admin', 'operator', 'guest'] },
  { id: 'oncall', title: 'On call', about: 'Not for guests', roles: ['admin', 'operator'] }
]

export function findUser (id: string): User | undefined {
  return users.find(user => user.id === id)
}

export function findRoom (id: string): Room | undefined {
  return rooms.find(room => room.id === id)
}

/** Returns the first subscriptions of a user. */
export function firstTopics (user: User): string[] {
  const wanted = ['machine', 'presence', 'log', 'connections', 'chat:general', 'chat:deploys', `user:${user.id}:**`]
  return wanted.filter(topic => mayHear(user, topic))
}

/**
 * Returns whether a user can hold a subscription. Streams and routes both use this function. A subscription is compared as text, so that
 * no user can hold a pattern such as `chat:*` or `**`.
 */
export function mayHear (user: User, subscription: string): boolean {
  if (subscription === `user:${user.id}:**` || subscription === `user:${user.id}:messages`) return true
  if (subscription === 'machine' || subscription === 'presence') return true
  if (subscription === 'log' || subscription === 'connections') return user.role !== 'guest'
  if (subscription.startsWith('chat:')) return findRoom(subscription.slice('chat:'.length))?.roles.includes(user.role) ?? false
  return false
}
