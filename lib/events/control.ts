/** The prefix of control events. Applications cannot send an event whose name begins with it. */
export const CONTROL_PREFIX = 'sse:'

/** The names of the control events, without their prefix. */
export type ControlEvent = 'gap' | 'close' | 'error' | 'unsubscribed' | 'join' | 'leave'

/** The name of messages between nodes. Applications cannot publish it, and clients never receive it. */
export const NODE_EVENT = 'sse:node'
