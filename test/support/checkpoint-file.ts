import { readFileSync, writeFileSync } from 'node:fs'

/** Rewrites the metadata of a checkpoint; `edit` maps JSON to JSON. */
export function editCheckpoint(file: string, edit: (about: string) => string): void {
  const bytes = readFileSync(file)
  const end = 8 + Number(bytes.readBigUInt64LE())
  const header = JSON.parse(bytes.toString('utf8', 8, end))
  header.__metadata__['st-moe.checkpoint'] = edit(header.__metadata__['st-moe.checkpoint'])
  const text = Buffer.from(JSON.stringify(header))
  const padding = Buffer.alloc(-text.length & 7, ' ')
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length + padding.length))
  writeFileSync(file, Buffer.concat([length, text, padding, bytes.subarray(end)]))
}
