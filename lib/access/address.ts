// The address of a client as a trusted proxy or the socket names it, reduced to what is counted as one client.

const IPV4 = /^(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)){3}$/
const WITH_PORT = /^(?:\[([^\]]*)\]|([\d.]+))(?::\d+)?$/
const GROUP = /^[0-9a-f]{1,4}$/i

/**
 * What counts as one address. Of IPv6 the first 64 bits, since a subscriber has all addresses within them; IPv4 written as IPv6 is IPv4. A port,
 * which Azure adds in X-Forwarded-For, brackets and a zone are no part of it. An empty string for what is no address: a Unix socket, a client
 * that has disconnected, the `unknown` of a proxy. All of these count as one, or any text would be a way around the limit.
 */
export function addressOf (text: string | undefined): string {
  const [, bracketed, plain] = WITH_PORT.exec(text ?? '') ?? []
  const ip = bracketed ?? plain ?? text ?? ''
  if (IPV4.test(ip)) return ip
  const groups = groupsOf(ip)
  if (groups === null) return ''
  if (groups.slice(0, 5).every(group => group === 0) && groups[5] === 0xffff) return [groups[6]! >> 8, groups[6]! & 255, groups[7]! >> 8, groups[7]! & 255].join('.')
  return `${groups.slice(0, 4).map(group => group.toString(16)).join(':')}::/64`
}

/** The eight numbers of an IPv6 address; null for anything else. */
function groupsOf (ip: string): number[] | null {
  const [address] = ip.split('%', 1)
  const halves = address!.split('::')
  if (halves.length > 2 || !address!.includes(':')) return null
  const parts = halves.map(half => half === '' ? [] : half.split(':'))
  const last = parts.at(-1)!
  // The last four bytes may be written as IPv4.
  if (last.length > 0 && IPV4.test(last.at(-1)!)) {
    const [a, b, c, d] = last.pop()!.split('.').map(Number)
    last.push((a! << 8 | b!).toString(16), (c! << 8 | d!).toString(16))
  }
  const [left, right] = parts
  const missing = 8 - parts.flat().length
  if (right === undefined ? missing !== 0 : missing < 1) return null
  const groups = [...left!, ...new Array<string>(missing).fill('0'), ...right ?? []]
  return groups.every(group => GROUP.test(group)) ? groups.map(group => parseInt(group, 16)) : null
}
