/** CLOCK_MONOTONIC in microseconds: the same in all processes of one machine. */
export function microseconds () {
  return Number(process.hrtime.bigint() / 1000n)
}

export function sleep (ms) {
  return new Promise(resolve => setTimeout(resolve, ms))
}

export function turn () {
  return new Promise(resolve => setImmediate(resolve))
}
