/** TFRecord files: each record with its length, and checksums of both. */

/** CRC-32C (Castagnoli), by bytes. */
const table = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1
  return crc
})

function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) crc = table[(crc ^ byte) & 0xff] ^ (crc >>> 8)
  return (crc ^ 0xffffffff) >>> 0
}

/** A checksum as the format stores it: rotated, so that one of data with checksums is not regular. */
function masked(bytes: Uint8Array): number {
  const crc = crc32c(bytes)
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0
}

export function recordOf(data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(data.length + 16)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(0, BigInt(data.length), true)
  view.setUint32(8, masked(bytes.subarray(0, 8)), true)
  bytes.set(data, 12)
  view.setUint32(12 + data.length, masked(data), true)
  return bytes
}
