import './wire/chunk.js'
import './wire/event-stream.js'
import './wire/sockets.js'
