import './wire/chunk.js'
import './wire/encoding.js'
import './wire/sockets.js'
