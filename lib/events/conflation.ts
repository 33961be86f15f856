import type { OutgoingMessage } from '../log/broker.js'

/**
 * What messages have in common of which only the newest is worth having: key and target, and whether they are logged,
 * since what may be dropped does not stand for what may not. Null for a message without a key, and for one with a filter:
 * two functions cannot be compared.
 */
export function conflationKey ({ key, target, ephemeral }: OutgoingMessage): string | null {
  if (key === undefined || target.filter !== undefined) return null
  return JSON.stringify([key, ephemeral, target.userIds, target.subscriptionIds, target.clientIds, target.exceptClientIds])
}
