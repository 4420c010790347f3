import { readFileSync, statSync } from 'node:fs'
import { Failure } from './errors.js'

/** Reads a file of at most so many bytes. A device, which has no end, or a pipe, which may have none, is not read. */
export function readBytes(path: string, maxBytes: number, purpose: string): Buffer {
  const file = statSync(path)
  if (!file.isFile()) throw new Failure(`${path} is not a file`)
  if (file.size > maxBytes) throw new Failure(`${path} has ${file.size} bytes, at most ${maxBytes} can be ${purpose}`)
  return readFileSync(path)
}
