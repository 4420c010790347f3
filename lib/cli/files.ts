import { readFileSync, statSync } from 'node:fs'
import { Failure } from './errors.js'

/** Reads a file of at most `maxBytes`; rejects devices and pipes, which may never end. */
export function readBytes(path: string, maxBytes: number): Buffer {
  const file = statSync(path)
  if (!file.isFile()) throw new Failure(`${path} is not a file`)
  if (file.size > maxBytes) throw new Failure(`${path} has ${file.size} bytes, at most ${maxBytes} are allowed`)
  return readFileSync(path)
}
