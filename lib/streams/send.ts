import type { SSEConnection } from '../connections/connection.js'
import type { Frame } from '../delivery/frame.js'

/** Queues a frame if its client has read enough. Returns false if it must wait, or if the stream has ended. */
export function sendNow (connection: SSEConnection, frame: Frame): boolean {
  return !connection.crowdedFor(frame) && connection.receive(frame)
}

/** Queues a frame when its client has read enough. Resolves with false if the stream has ended. */
export async function send (connection: SSEConnection, frame: Frame): Promise<boolean> {
  while (!sendNow(connection, frame)) {
    if (!connection.isConnected) return false
    await connection.drained()
  }
  return true
}
