import { BrokerUnavailable } from '../errors.js'

/**
 * Rejects with SSE_ERR_BROKER_UNAVAILABLE when `reply` does not come in time. After a time in which the event loop stood still,
 * timers come before what has arrived meanwhile: that is read first.
 */
export async function inTime<T> (reply: Promise<T>, timeoutMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  let turn: NodeJS.Immediate | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => {
      turn = setImmediate(() => reject(new BrokerUnavailable(`did not answer within ${timeoutMs} ms`)))
    }, timeoutMs)
  })
  try {
    return await Promise.race([reply, late])
  } finally {
    clearTimeout(timer)
    clearImmediate(turn)
  }
}
