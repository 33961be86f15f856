// F: bare node:http, one buffer already framed as an HTTP chunk, one `socket.write()` per connection and event: the floor there is.
import { startFloor } from './floor-http.mjs'

export default () => startFloor(response => response.socket, text => Buffer.from(`${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`))
