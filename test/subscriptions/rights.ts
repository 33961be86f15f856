import fc from 'fast-check'
import t from 'tap'
import { type BroadcastOptions } from '../../lib/index.js'
import { serve, settle, texts, type Joined, type Service } from '../helpers/app.js'
import { until } from '../helpers/wait.js'

// Who may hear what, now: at delivery, at replay, after a right was given or taken.

const publish = ({ app }: Service, data: string, options: BroadcastOptions = {}) => app.sse.broadcastEvent({ event: 'x', data }, options)

// --- Everything at random, against a naive model ---

const USERS = ['ada', 'grace', 'linus'] as const
const TOPICS = ['a', 'a:x', 'a:y', 'a:x:1', 'b', 'b:x'] as const
const SUBSCRIPTIONS = [...TOPICS, 'a:*', 'a:**', '*', '**', '*:x', 'b:**'] as const

type Command =
  | { do: 'connect', user: number, subscriptions: number[], cursor: number }
  | { do: 'cut', client: number }
  | { do: 'publish', topics: number[] | null, users: number[] | null, ephemeral: boolean, priority: 0 | 1 | 2 | 3 }
  | { do: 'grant' | 'withdraw', user: number, topic: number }
  | { do: 'revoke', user: number, subscription: number }
  | { do: 'subscribe', client: number, subscription: number }
  | { do: 'tick' }

const index = (length: number) => fc.nat({ max: length - 1 })
const some = (length: number) => fc.uniqueArray(index(length), { minLength: 1, maxLength: 3 })

const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ do: fc.constant('connect' as const), user: index(USERS.length), subscriptions: fc.uniqueArray(index(SUBSCRIPTIONS.length), { maxLength: 4 }), cursor: fc.nat({ max: 8 }) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('cut' as const), client: fc.nat({ max: 8 }) }) },
  { weight: 8, arbitrary: fc.record({ do: fc.constant('publish' as const), topics: fc.option(some(TOPICS.length)), users: fc.option(some(USERS.length), { freq: 2 }), ephemeral: fc.boolean(), priority: fc.constantFrom(0, 1, 2, 3) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constantFrom('grant' as const, 'withdraw' as const), user: index(USERS.length), topic: index(TOPICS.length) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('revoke' as const), user: index(USERS.length), subscription: index(SUBSCRIPTIONS.length) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('subscribe' as const), client: fc.nat({ max: 8 }), subscription: index(SUBSCRIPTIONS.length) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('tick' as const) }) }
)

interface ModelEvent { name: string, topics: string[] | null, users: string[] | null }

/** What one client is and should have been sent, by the model; and what it was. */
interface Peer {
  joined: Joined
  user: string
  held: Set<string>
  /** Published in this turn, not written yet. */
  waiting: ModelEvent[]
  expected: string[]
  /** How many events were logged when it last was level with the log. */
  position: number
  told: number
}

/** Written apart from lib/: a pattern as a regular expression. */
const covers = (pattern: string, topic: string) => new RegExp(`^${pattern.split(':').map(part => part === '*' ? ':[^:]+' : part === '**' ? '(:[^:]+)*' : `:${part}`).join('')}$`).test(`:${topic}`)

/** Interprets commands against the service and the naive model, and returns what differs. */
async function simulate (service: Service, rights: Map<string, Set<string>>, commands: readonly Command[]): Promise<string[]> {
  const { app, join } = service
  const log: ModelEvent[] = []
  const peers: Peer[] = []
  let count = 0
  const faults: string[] = []
  const may = ({ user, held }: Peer, { topics, users }: ModelEvent) => (users === null || users.includes(user)) &&
    (topics === null || topics.some(topic => held.has(topic) || ([...held].some(pattern => covers(pattern, topic)) && rights.get(user)!.has(topic))))
  const live = () => peers.filter(({ joined: { stream } }) => stream.isOpen)
  const tick = async () => {
    await settle(service, ...live().map(({ joined }) => joined.stream))
    for (const peer of live()) {
      peer.expected.push(...peer.waiting.splice(0).map(({ name }) => name))
      peer.position = log.length
      const seen = texts(peer.joined.stream).map(String)
      if (seen.toSorted().join() !== peer.expected.toSorted().join()) faults.push(`${peer.user} holding ${[...peer.held]} has ${seen}, should have ${peer.expected}`)
      if (peer.joined.stream.named('sse:unsubscribed').length !== peer.told) faults.push(`${peer.user} was told ${peer.joined.stream.named('sse:unsubscribed').length} times, not ${peer.told}`)
    }
  }
  const take = (peer: Peer, subscription: string) => {
    if (!peer.held.delete(subscription)) return
    peer.told++
    peer.waiting = peer.waiting.filter(event => may(peer, event))
  }
  for (const command of commands) {
    switch (command.do) {
      case 'connect': {
        await tick()
        const user = USERS[command.user]!
        const wanted = command.subscriptions.map(i => SUBSCRIPTIONS[i]!)
        const allowed = wanted.every(subscription => subscription.includes('*') || rights.get(user)!.has(subscription))
        // Its own cursor or that of somebody else.
        const from = peers.length === 0 ? undefined : peers[command.cursor % peers.length]
        const cursor = command.cursor === 8 ? undefined : from?.joined.stream.lastEventId
        const joined = await join(user, wanted, cursor === undefined ? {} : { cursor }).catch((error: Error) => error)
        if (joined instanceof Error) {
          if (allowed || !joined.message.includes('SSE_ERR_SUBSCRIPTION_FORBIDDEN')) faults.push(`${user} ${wanted}: ${joined.message}`)
          break
        }
        if (!allowed) faults.push(`${user} got in with ${wanted}`)
        const peer: Peer = { joined, user, held: new Set(wanted), waiting: [], expected: [], position: 0, told: 0 }
        if (cursor !== undefined) peer.waiting = log.slice(from!.position).filter(event => may(peer, event))
        peers.push(peer)
        await tick()
        break
      }
      case 'cut': {
        await tick()
        const open = live()
        const stream = open.length === 0 ? undefined : open[command.client % open.length]!.joined.stream
        await stream?.close()
        if (stream !== undefined) await until(() => !stream.isOpen && app.sse.connectionCount === live().length)
        break
      }
      case 'publish': {
        const event: ModelEvent = { name: String(++count), topics: command.topics?.map(i => TOPICS[i]!) ?? null, users: command.users?.map(i => USERS[i]!) ?? null }
        if (!command.ephemeral) log.push(event)
        await publish(service, event.name, { ephemeral: command.ephemeral, priority: command.priority, ...(event.topics && { subscriptionIds: event.topics }), ...(event.users && { userIds: event.users }) })
        for (const peer of live()) if (may(peer, event)) peer.waiting.push(event)
        break
      }
      case 'grant':
        rights.get(USERS[command.user]!)!.add(TOPICS[command.topic]!)
        break
      case 'withdraw': {
        const user = USERS[command.user]!
        rights.get(user)!.delete(TOPICS[command.topic]!)
        await app.sse.reauthorize(user)
        for (const peer of live()) {
          if (peer.user !== user) continue
          peer.waiting = peer.waiting.filter(event => may(peer, event))
          for (const subscription of [...peer.held]) if (!subscription.includes('*') && !rights.get(user)!.has(subscription)) take(peer, subscription)
        }
        break
      }
      case 'revoke': {
        const user = USERS[command.user]!
        const subscription = SUBSCRIPTIONS[command.subscription]!
        await app.sse.revokeSubscription(user, subscription)
        for (const peer of live()) if (peer.user === user) take(peer, subscription)
        break
      }
      case 'subscribe': {
        const open = live()
        if (open.length === 0) break
        const peer = open[command.client % open.length]!
        const subscription = SUBSCRIPTIONS[command.subscription]!
        const added = await peer.joined.connection.addSubscription(subscription).then(() => true, () => false)
        if (added !== (subscription.includes('*') || rights.get(peer.user)!.has(subscription))) faults.push(`${peer.user} ${subscription}: ${added}`)
        if (added) peer.held.add(subscription)
        break
      }
      case 'tick':
        await tick()
    }
  }
  await tick()
  for (const { joined } of peers) await joined.stream.close()
  await until(() => app.sse.connectionCount === 0)
  return faults
}

t.test('random users, topics, grants, revocations and other people\'s cursors: nobody gets an event that is not for them, and each all that is', async t => {
  const rights = new Map<string, Set<string>>()
  const service = await serve(t, {
    authorizeSubscription: ({ userId, subscriptionId }) => subscriptionId.includes('*') || rights.get(userId!)!.has(subscriptionId),
    authorizeTopic: ({ userId, topic }) => rights.get(userId!)!.has(topic)
  })
  let events = 0
  let deliveries = 0
  await fc.assert(fc.asyncProperty(fc.array(command, { minLength: 20, maxLength: 60 }), async commands => {
    for (const user of USERS) rights.set(user, new Set<string>([TOPICS[USERS.indexOf(user)]!, 'a:x']))
    const before = service.app.sse.stats()
    const faults = await simulate(service, rights, commands)
    events += commands.filter(command => command.do === 'publish').length
    deliveries += service.app.sse.stats().delivered - before.delivered
    if (faults.length > 0) throw new Error(faults[0])
  }), { seed: 20_051, numRuns: Number(process.env['RIGHTS_RUNS'] ?? 60), endOnFailure: true })
  t.ok(events > 500 && deliveries > 500, `${events} events, ${deliveries} deliveries`)
})
