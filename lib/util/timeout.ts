import { BrokerUnavailable } from '../errors.js'

/**
 * Resolves with `reply`, or rejects when it does not settle within `timeoutMs` milliseconds. After a blocked event loop, timers
 * fire before arrived data is read. The time-out therefore waits one more turn of the event loop.
 * @param progress returns a value that changes while the reply arrives. If it has changed, the time-out starts again.
 * @throws SSE_ERR_BROKER_UNAVAILABLE
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
