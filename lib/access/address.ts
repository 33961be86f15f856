// Reduces the address of a client, from the socket or a trusted proxy, to the part that `maxConnectionsPerIp` counts.

const IPV4 = /^(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)){3}$/
const WITH_PORT = /^(?:\[([^\]]*)\]|([\d.]+))(?::\d+)?$/
const GROUP = /^[0-9a-f]{1,4}$/i

/**
 * Returns the address that is counted: an IPv4 address, or the first 64 bits of an IPv6 address, within which one subscriber has all
 * addresses. IPv4 addresses in IPv6 notation become IPv4. Brackets, a zone and a port, which Azure adds to `X-Forwarded-For`, are
 * removed. Returns an empty string for anything else, such as a Unix socket, a disconnected client, or `unknown` of a proxy. These
 * count as one address, because arbitrary text would otherwise bypass the limit.
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

/** Returns the eight numbers of an IPv6 address, or null for any other text. */
function groupsOf (ip: string): number[] | null {
  const [address] = ip.split('%', 1)
  const halves = address!.split('::')
  if (halves.length > 2 || !address!.includes(':')) return null
  const parts = halves.map(half => half === '' ? [] : half.split(':'))
  const last = parts.at(-1)!
  // The last four bytes can be in IPv4 notation.
  if (IPV4.test(last.at(-1) ?? '')) {
    const [a, b, c, d] = last.pop()!.split('.').map(Number)
    last.push((a! << 8 | b!).toString(16), (c! << 8 | d!).toString(16))
  }
  const [left, right] = parts
  const missing = 8 - parts.flat().length
  if (right === undefined ? missing !== 0 : missing < 1) return null
  const groups = [...left!, ...new Array<string>(missing).fill('0'), ...right ?? []]
  return groups.every(group => GROUP.test(group)) ? groups.map(group => parseInt(group, 16)) : null
}
