import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { Test } from 'tap'
import { channelName, CHANNEL_NAMES } from '../../lib/diagnostics/channels.js'
import type { Diagnostics } from '../../lib/index.js'

/** What the channels report of one node, in order, until the test ends. */
export class Reports {
  readonly all: [channel: keyof Diagnostics, payload: any][] = []

  constructor (t: Test, nodeId: () => string | null, names: readonly (keyof Diagnostics)[] = CHANNEL_NAMES) {
    for (const name of names) {
      const take = (payload: unknown) => {
        if ((payload as { nodeId: string }).nodeId === nodeId()) this.all.push([name, payload])
      }
      subscribe(channelName(name), take)
      t.teardown(() => { unsubscribe(channelName(name), take) })
    }
  }

  /** The payloads of one channel. */
  of<N extends keyof Diagnostics> (name: N): Diagnostics[N][] {
    return this.all.filter(([channel]) => channel === name).map(([, payload]) => payload)
  }
}
