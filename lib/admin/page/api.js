// The routes of the page: a stream of overviews, and questions.

const RETRY_MS = 5_000
const ANSWER_MS = 15_000

/** Asks a route. Rejects with the message of the server, or the status. */
export async function ask (route, parameters, body) {
  const query = new URLSearchParams(parameters).toString()
  const response = await fetch(`api/${route}${query === '' ? '' : `?${query}`}`, {
    signal: AbortSignal.timeout(ANSWER_MS),
    ...(body !== undefined && { method: 'POST', headers: { 'content-type': 'application/json', 'x-sse-admin': '1' }, body: JSON.stringify(body) })
  })
  const text = await response.text()
  let answer = null
  try {
    answer = JSON.parse(text)
  } catch {}
  if (response.ok && answer !== null) return answer
  throw new Error(answer?.message ?? (response.ok ? 'The answer is not JSON: you may have been signed out' : `The server answered with ${response.status}`))
}

/**
 * Follows the overviews: by a stream, and while there is none by questions. An overloaded node refuses streams, and then the page is
 * needed most.
 */
export function follow (onOverview, onState) {
  let source = null
  let isAsking = false
  const connect = () => {
    source = new EventSource('api/stream')
    source.addEventListener('overview', ({ data }) => {
      onState('live')
      onOverview(JSON.parse(data))
    })
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return onState('reconnecting')
      poll()
      setTimeout(connect, RETRY_MS)
    }
  }
  const poll = async () => {
    if (isAsking) return
    isAsking = true
    try {
      onOverview(await ask('overview'))
      onState('polling')
    } catch (error) {
      onState('lost', error.message)
    }
    isAsking = false
  }
  connect()
}
