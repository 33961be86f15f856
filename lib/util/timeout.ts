import { BrokerUnavailable } from '../errors.js'

/** Rejects with SSE_ERR_BROKER_UNAVAILABLE when `reply` does not come in time. */
export async function inTime<T> (reply: Promise<T>, timeoutMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new BrokerUnavailable(`did not answer within ${timeoutMs} ms`)), timeoutMs)
  })
  try {
    return await Promise.race([reply, late])
  } finally {
    clearTimeout(timer)
  }
}
