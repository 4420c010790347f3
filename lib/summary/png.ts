import { crc32, deflateSync } from 'node:zlib'
import { joined } from './protobuf.js'

/** PNG files (ISO/IEC 15948) of 8 bits per channel, without filters. */

const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a)

function bigEndian(value: number): Uint8Array {
  const bytes = new Uint8Array(4)
  new DataView(bytes.buffer).setUint32(0, value)
  return bytes
}

function chunk(name: string, data: Uint8Array): Uint8Array {
  const named = joined([new TextEncoder().encode(name), data])
  return joined([bigEndian(data.length), named, bigEndian(crc32(named))])
}

/** Rows of pixels from the top, each of 1 (gray) or 3 channels (RGB). */
export function encodePng(pixels: Uint8Array, height: number, width: number, channels: 1 | 3): Uint8Array {
  const colorType = channels === 1 ? 0 : 2
  const about = joined([bigEndian(width), bigEndian(height), Uint8Array.of(8, colorType, 0, 0, 0)])
  const bytes = width * channels
  const rows = new Uint8Array(height * (bytes + 1)) // each begins with its filter: none
  for (let y = 0; y < height; y++) rows.set(pixels.subarray(y * bytes, (y + 1) * bytes), y * (bytes + 1) + 1)
  return joined([signature, chunk('IHDR', about), chunk('IDAT', deflateSync(rows)), chunk('IEND', new Uint8Array())])
}
