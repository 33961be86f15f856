// This package as `ours`, over HTTP/2 without TLS.
import { startOurs } from './ours.mjs'

export default () => startOurs({}, { http2: true })
