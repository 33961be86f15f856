import type { SSEConnection } from '../connections/connection.js'
import { readSource } from './source-reader.js'
import { ItemDecoder } from './item-decoder.js'
import { send, sendNow } from './send.js'
import { frameOf, frameOfText, type Source, type SourceFactory, type SourceItem } from './source.js'

/**
 * Writes a source to one connection, as fast as the client reads. Resolves when the source or the stream has ended. The source is then
 * stopped, so that its `finally` runs. Rejects with the error of the source.
 * @throws SSE_ERR_INVALID_SOURCE, SSE_ERR_INVALID_EVENT_NAME, SSE_ERR_INVALID_ID, SSE_ERR_INVALID_RETRY, SSE_ERR_INVALID_DATA
 */
export async function writeSource (connection: SSEConnection, source: Source | SourceFactory): Promise<void> {
  const { signal, lastEventId } = connection
  const decoder = new ItemDecoder()
  await readSource(typeof source === 'function' ? source({ signal, lastEventId }) : source, signal, {
    get isOpen () { return connection.isConnected },
    take ({ done, value }) {
      const frame = done === true ? frameOfText(decoder.end()) : frameOf(value as SourceItem, decoder)
      if (frame === null || connection.writeAtOnce(frame)) return null
      // A frame that waits must not keep a larger string that its data was cut from.
      const own = frame.withOwnText()
      return sendNow(connection, own) ? null : send(connection, own)
    }
  })
}
