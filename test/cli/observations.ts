import type { Observation } from '../../lib/cli/observation.js'

/** What a stream has shown that was watched for a minute. */
export function observation (given: Partial<Observation> = {}): Observation {
  return {
    durationMs: 60_000,
    firstTextMs: 5,
    longestSilenceMs: 1_000,
    lastSilenceMs: 1_000,
    ending: 'open',
    isOwn: false,
    announcedMs: null,
    keepAliveMs: null,
    bunches: 0,
    singles: 0,
    lumps: 0,
    torn: 0,
    retryMs: null,
    lastEventId: null,
    newestEvent: null,
    previousEvent: null,
    events: 0,
    firstEvent: null,
    lastEvent: null,
    beginning: '',
    isOverlong: false,
    ...given
  }
}
