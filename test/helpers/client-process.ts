// A client in a process of its own, so that it can have another network. Says on its standard output what happens, a line each.
import { createClient } from '../../lib/client/index.js'

const [url] = process.argv.slice(2) as [string]
const say = (line: object): void => { console.log(JSON.stringify(line)) }
const client = createClient(url, { maxRetryMs: 1_000 })
client.onState(({ name }) => say({ state: name }))
client.onGap(gap => say({ gap }))
client.on('n', n => say({ n }))
// However the test ends, this ends with it.
process.stdin.resume().on('end', () => process.exit())
