import './wire/chunk.js'
import './wire/event-stream.js'
import './wire/headers.js'
import './wire/sockets.js'
