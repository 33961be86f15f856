import { BrokerUnavailable } from '../errors.js'

/**
 * Rejects with SSE_ERR_BROKER_UNAVAILABLE when `reply` does not come in time. After a time in which the event loop stood still,
 * timers come before what has arrived meanwhile: that is read first.
 * @param progress a number that changes while the reply arrives: then it has the same time again.
 */
export async function inTime<T> (reply: Promise<T>, timeoutMs: number, progress?: () => unknown): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  let turn: NodeJS.Immediate | undefined
  const late = new Promise<never>((_resolve, reject) => {
    const wait = () => {
      const before = progress?.()
      timer = setTimeout(() => {
        turn = setImmediate(() => {
          if (progress?.() === before) reject(new BrokerUnavailable(`did not answer within ${timeoutMs} ms`))
          else wait()
        })
      }, timeoutMs)
    }
    wait()
  })
  try {
    return await Promise.race([reply, late])
  } finally {
    clearTimeout(timer)
    clearImmediate(turn)
  }
}
