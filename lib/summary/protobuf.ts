/** The part of the wire format of Protocol Buffers that summaries need. */

const utf8 = new TextEncoder()

export function joined(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((total, { length }) => total + length, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}

/** An integer from 0 to 2^53 − 1. */
function varint(value: number): Uint8Array {
  const bytes: number[] = []
  let rest = value
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128)
  bytes.push(rest)
  return Uint8Array.from(bytes)
}

const header = (field: number, type: number): Uint8Array => varint(field * 8 + type)

export const integerField = (field: number, value: number): Uint8Array => joined([header(field, 0), varint(value)])

export const doubleField = (field: number, value: number): Uint8Array =>
  joined([header(field, 1), new Uint8Array(Float64Array.of(value).buffer)])

export const floatField = (field: number, value: number): Uint8Array =>
  joined([header(field, 5), new Uint8Array(Float32Array.of(value).buffer)])

/** Bytes, text, or a message as its fields. */
export function bytesField(field: number, value: Uint8Array | string | readonly Uint8Array[]): Uint8Array {
  const bytes = typeof value === 'string' ? utf8.encode(value) : value instanceof Uint8Array ? value : joined(value)
  return joined([header(field, 2), varint(bytes.length), bytes])
}

export const doublesField = (field: number, values: readonly number[]): Uint8Array =>
  bytesField(field, new Uint8Array(Float64Array.from(values).buffer))
