/** The prefix of control events: applications cannot send events of such a name. */
export const CONTROL_PREFIX = 'sse:'

/** The control events, in the reserved namespace. */
export type ControlEvent = 'gap' | 'close' | 'error' | 'unsubscribed' | 'join' | 'leave'

/** The name of messages between nodes; applications cannot publish it, and no client receives it. */
export const NODE_EVENT = 'sse:node'
