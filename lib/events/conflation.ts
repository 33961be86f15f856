import { createHash } from 'node:crypto'
import type { OutgoingMessage } from '../log/broker.js'

/** A longer one is kept as its digest: with a target of thousands it would take as much again as the target, wherever it is looked up. */
const MAX_LENGTH = 128

/**
 * What messages have in common of which only the newest is worth having: key and target, and whether they are logged,
 * since what may be dropped does not stand for what may not. Null for a message without a key, and for one with a filter:
 * two functions cannot be compared.
 */
export function conflationKey ({ key, target, ephemeral }: OutgoingMessage): string | null {
  if (key === undefined || target.filter !== undefined) return null
  const text = JSON.stringify([key, ephemeral, target.userIds, target.subscriptionIds, target.clientIds, target.exceptClientIds])
  return text.length <= MAX_LENGTH ? text : createHash('sha256').update(text).digest('base64')
}
