import type { SnapshotOptions, SnapshotQuestion } from '../../lib/index.js'
import { until } from './wait.js'

/** A snapshot whose loads wait until a test lets them go on. */
export function gated (answer: (question: SnapshotQuestion) => unknown = ({ subscriptions }) => ({ event: 'state', data: subscriptions })) {
  const questions: SnapshotQuestion[] = []
  const waiting: (() => void)[] = []
  const load = async (question: SnapshotQuestion): Promise<any> => {
    questions.push(question)
    await new Promise<void>(resolve => { waiting.push(resolve) })
    return answer(question)
  }
  return {
    /** What `load` was asked, in order. */
    questions,
    snapshot: { load } satisfies SnapshotOptions,
    /** Waits until `load` was called once more, and lets the oldest call go on. */
    async release () {
      await until(() => waiting.length > 0, undefined, 'load is called')
      waiting.shift()!()
    }
  }
}

/** A snapshot that is loaded at once, and what its loads were asked. */
export function counted (answer: (question: SnapshotQuestion) => unknown = ({ subscriptions }) => ({ event: 'state', data: subscriptions })) {
  const questions: SnapshotQuestion[] = []
  const load = (question: SnapshotQuestion): any => {
    questions.push(question)
    return answer(question)
  }
  return { questions, snapshot: { load } satisfies SnapshotOptions, asked: () => questions.map(({ reason, subscriptions }) => [reason, ...subscriptions].join(' ')) }
}
