import type { Draw } from './numbers.js'

/** Random damage to files, for the tests that load them. Each function makes one change; several make a worse file. */

/** Any file: a byte, a bit, a piece cut out, doubled, moved or put in, the end lost, a length at its start. */
export function damageBytes(draw: Draw, bytes: Buffer): Buffer {
  if (bytes.length === 0) return Buffer.from([draw.integer(0, 255)])
  const at = draw.integer(0, bytes.length - 1)
  const near = Math.min(bytes.length, at + draw.integer(1, 8))
  const from = draw.integer(0, bytes.length - 1)
  const copy = Buffer.from(bytes)
  switch (draw.integer(0, 9)) {
    case 0:
      copy[at] = draw.integer(0, 255)
      return copy
    case 1:
      copy[at] ^= 1 << draw.integer(0, 7)
      return copy
    case 2:
      return Buffer.concat([copy.subarray(0, at), copy.subarray(near)])
    case 3:
      return Buffer.concat([copy.subarray(0, near), copy.subarray(at)])
    case 4:
      copy[at] = draw.of([...Buffer.from('0123456789-.,:[]{}"eE\\')])
      return copy
    case 5:
      if (copy.length >= 8) copy.writeBigUInt64LE(BigInt(draw.of([draw.integer(0, 400), bytes.length, 2 ** 40])), 0)
      return copy
    case 6:
      return copy.subarray(0, at)
    case 7:
      return Buffer.concat([copy.subarray(0, at), bytes.subarray(from)])
    case 8:
      copy.fill(draw.of([0, 255]), at, Math.min(bytes.length, at + draw.integer(1, 4096)))
      return copy
    default:
      return Buffer.concat([copy.subarray(0, at), Buffer.from(draw.of(hostileTokens)), copy.subarray(at)])
  }
}

const hostileTokens = [
  ...['0', '-0', '-1', '1.5', '2', '7', '10000', '200000', '2147483648', '4294967296', '9007199254740993'],
  ...['1e308', '1e999', '-1e999', '1E400', '0x10', '01', 'NaN', 'Infinity', 'null', 'true', 'false'],
  ...[
    '',
    '"',
    '""',
    '"a"',
    '"__proto__"',
    '"constructor"',
    '"\\ud800"',
    '"\\u0000"',
    '"\u0000"',
    '"<script>"',
    '"\u001b[2J"',
  ],
  ...['[]', '{}', '[[]]', '{"a":{}}', ',', ':', '[', ']', '{', '}', `"${'x'.repeat(300)}"`, '['.repeat(300)],
]
const token = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|[{}[\],:]/g

/** JSON: one token replaced by another of the text or by a hostile one, lost, or doubled. */
export function damageJson(draw: Draw, text: string): string {
  const tokens = [...text.matchAll(token)]
  if (tokens.length === 0) return draw.of(hostileTokens)
  const { 0: old, index } = draw.of(tokens)
  const other = draw.of([draw.of(hostileTokens), draw.of(hostileTokens), draw.of(tokens)[0], '', old + old])
  return text.slice(0, index) + other + text.slice(index + old.length)
}

/** A safetensors file: its header damaged as JSON, and its length right again. */
export function damageHeader(draw: Draw, file: Buffer, damage = damageJson): Buffer {
  const end = file.length < 8 ? 0 : 8 + Number(file.readBigUInt64LE())
  if (end < 8 || end > file.length) return damageBytes(draw, file)
  const header = Buffer.from(damage(draw, file.toString('utf8', 8, end)))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  return Buffer.concat([length, header, file.subarray(end)])
}

/** A safetensors file: one entry of its metadata damaged as JSON. */
export const damageMetadata = (draw: Draw, file: Buffer): Buffer =>
  damageHeader(draw, file, (_, text) => {
    try {
      const header = JSON.parse(text)
      const name = draw.of(Object.keys(header.__metadata__))
      header.__metadata__[name] = damageJson(draw, header.__metadata__[name])
      return JSON.stringify(header)
    } catch {
      return damageJson(draw, text) // an earlier damage hit the header
    }
  })
