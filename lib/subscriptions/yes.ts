/**
 * What the application answers when it is asked in the middle of a delivery. Only `true` is a yes. A promise is no answer, and
 * whoever wrote an async function would wonder: for one it throws.
 */
export function isYes (answer: unknown, asynchronous: () => Error): boolean {
  if (!(answer instanceof Promise)) return answer === true
  answer.catch(() => {})
  throw asynchronous()
}
