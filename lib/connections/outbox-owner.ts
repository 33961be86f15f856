import type { DropReason } from '../diagnostics/channels.js'

/** Learns what a full outbox does. */
export interface OutboxOwner {
  /** An ephemeral frame was dropped. */
  onDrop (reason: DropReason): void
  /** Logged frames were removed, and will be read from the log. */
  onLag (): void
}
