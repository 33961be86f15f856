// W: bare node:http and `response.write()` in a loop, the floor that users know.
import { startFloor } from './floor-http.mjs'

export default () => startFloor(response => response, text => Buffer.from(text))
