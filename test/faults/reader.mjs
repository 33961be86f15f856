import { connect } from 'node:net'

// Clients in a process of their own, which a test can stop, or put behind a network of its own:
// node reader.mjs HOST PORT COUNT PATH. Says on its standard output what it is at, once a change.

const [host, port, count, path] = process.argv.slice(2)
const sockets = Array.from({ length: Number(count) }, () => {
  const socket = connect(Number(port), host)
  socket.write(`GET ${path} HTTP/1.1\r\nhost: ${host}\r\n\r\n`)
  socket.on('error', () => {})
  return socket
})
let open = 0
let closed = 0
const say = () => console.log(JSON.stringify({ open, closed }))
for (const socket of sockets) {
  socket.once('data', () => {
    open++
    say()
  })
  socket.resume()
  socket.on('close', () => {
    closed++
    say()
  })
}
// However the test ends, this ends with it.
process.stdin.resume().on('end', () => process.exit())
