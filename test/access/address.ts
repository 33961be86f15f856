import fc from 'fast-check'
import assert from 'node:assert/strict'
import t from 'tap'
import { addressOf } from '../../lib/access/address.js'

// The part of an address that is counted.

t.test('addresses in every notation, and what is none', t => {
  for (const [ip, address] of [
    ['192.0.2.7', '192.0.2.7'], ['::ffff:192.0.2.7', '192.0.2.7'], ['::FFFF:192.0.2.7', '192.0.2.7'], ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'], ['2001:0DB8:0001:0002::1', '2001:db8:1:2::/64'],
    ['2001:db8::1', '2001:db8:0:0::/64'], ['::1', '0:0:0:0::/64'], ['fe80::1%eth0', 'fe80:0:0:0::/64'], ['64:ff9b::192.0.2.7', '64:ff9b:0:0::/64'], ['', ''],
    // With a port, as Azure writes them; in brackets; with a zone; IPv4 in every notation of IPv6.
    ['192.0.2.7:1111', '192.0.2.7'], ['192.0.2.7:65535', '192.0.2.7'], ['[2001:db8:1:2::1]:443', '2001:db8:1:2::/64'], ['[2001:db8:1:2::1]', '2001:db8:1:2::/64'], ['[::ffff:192.0.2.7]:80', '192.0.2.7'],
    ['[fe80::1%eth0]:80', 'fe80:0:0:0::/64'], ['::ffff:c000:0207', '192.0.2.7'], ['0:0:0:0:0:ffff:192.0.2.7', '192.0.2.7'], ['0000:0000:0000:0000:0000:FFFF:C000:0207', '192.0.2.7'], ['::ffff:192.0.2.7%1', '192.0.2.7'],
    ['::', '0:0:0:0::/64'], ['1::', '1:0:0:0::/64'], ['1:2:3:4:5:6:7::', '1:2:3:4::/64'], ['1:2:3:4:5:6:192.0.2.7', '1:2:3:4::/64'],
    // What is no address.
    ...['unknown', '_hidden', '192.0.2', '192.0.2.7.1', '192.0.2.256', '192.0.2.07', '192.0.2.7:', '192.0.2.7:x', ':', ':::', '1::2::3', '1:2:3:4:5:6:7', '1:2:3:4:5:6:7:8:9', '1:2:3:4:5:6:7::8', 'g::1', '12345::', '[::1', '::1]', '[]', '[192.0.2.7]x', '::192.0.2.7:1', '::256.0.2.7', 'localhost', ' ', '192.0.2.7, 192.0.2.8'].map(text => [text, ''])
  ]) t.equal(addressOf(ip!), address, ip)
  t.equal(addressOf(undefined), '')
  for (let i = 0; i < 1_100; i++) {
    for (let at = 0; at < 4; at++) {
      const ip = [1, 2, 3, 4].map((byte, n) => n === at ? i : byte).join('.')
      if (addressOf(ip) !== (i < 256 ? ip : '')) t.fail(ip)
    }
  }
  t.end()
})

t.test('an address of IPv6 is counted by its first 64 bits, however it is written', t => {
  const group = fc.oneof(fc.constantFrom(0, 0xffff), fc.nat(0xffff))
  t.doesNotThrow(() => fc.assert(fc.property(fc.array(group, { minLength: 8, maxLength: 8 }), fc.nat(8), fc.nat(8), fc.boolean(), fc.boolean(), fc.constantFrom('', '%eth0'), fc.boolean(), (groups, from, length, upper, padded, zone, bracketed) => {
    const texts = groups.map(group => group.toString(16).padStart(padded ? 4 : 1, '0'))
    // As many zeros as there are from here can be left out.
    let zeros = 0
    while (zeros < length && groups[from + zeros] === 0) zeros++
    const joined = zeros === 0 ? texts.join(':') : `${texts.slice(0, from).join(':')}::${texts.slice(from + zeros).join(':')}`
    const ip = (upper ? joined.toUpperCase() : joined) + zone
    const mapped = groups.slice(0, 5).every(group => group === 0) && groups[5] === 0xffff
    const expected = mapped ? groups.slice(6).flatMap(group => [group >> 8, group & 255]).join('.') : `${groups.slice(0, 4).map(group => group.toString(16)).join(':')}::/64`
    assert.equal(addressOf(bracketed ? `[${ip}]:443` : ip), expected, ip)
    const last = groups.slice(6).flatMap(group => [group >> 8, group & 255]).join('.')
    assert.equal(addressOf(`${texts.slice(0, 6).join(':')}:${last}`), expected, 'its last four bytes as IPv4')
  }), { numRuns: 1_000 }))
  // One group beside those of an IPv4 address in IPv6 notation.
  for (let at = 0; at < 6; at++) {
    const groups = [0, 0, 0, 0, 0, 0xffff, 0xc000, 0x207].map((group, i) => i === at ? group ^ 1 : group)
    t.match(addressOf(groups.map(group => group.toString(16)).join(':')), /::\/64$/, `group ${at}`)
  }
  t.end()
})
