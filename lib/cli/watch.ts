import { systemClock, type Timer } from '../util/clock.js'
import type { Answer } from './answer.js'
import type { Observation } from './observation.js'
import { Observer, type Limits } from './observer.js'

/** Watches a stream until enough was seen or the signal aborts, then disconnects. */
export async function watch (answer: Answer, limits: Limits, signal: AbortSignal): Promise<Observation> {
  const observer = new Observer(limits)
  let timer: Timer | null = null
  const ending = await new Promise<Observation['ending']>(resolve => {
    const check = (): void => {
      systemClock.cancel(timer)
      const leftMs = signal.aborted ? 0 : observer.leftMs()
      if (leftMs <= 0) resolve('open')
      else timer = systemClock.after(leftMs, check)
    }
    signal.addEventListener('abort', check, { once: true })
    check()
    answer.read(text => {
      observer.take(text)
      check()
    }).then(resolve)
  })
  systemClock.cancel(timer)
  answer.close()
  return observer.observation(ending)
}
