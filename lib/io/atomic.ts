import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import { open, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'

/**
 * Files appear whole or not at all: a temporary file in the same folder, fsync, rename, fsync of the folder. After an
 * error or a kill the old file is still there.
 */

let counter = 0
const temporaryName = (path: string): string => `${path}.${process.pid}.${counter++}.tmp`

export function writeAtomicSync(path: string, parts: readonly Uint8Array[]): void {
  const temporary = temporaryName(path)
  const file = openSync(temporary, 'wx', 0o666)
  try {
    try {
      for (const part of parts) {
        for (let at = 0; at < part.byteLength; ) at += writeSync(file, part, at, part.byteLength - at)
      }
      fsyncSync(file)
    } finally {
      closeSync(file)
    }
    renameSync(temporary, path)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  }
  const folder = openSync(dirname(path), 'r')
  try {
    fsyncSync(folder)
  } finally {
    closeSync(folder)
  }
}

export async function writeAtomic(path: string, parts: readonly Uint8Array[]): Promise<void> {
  const temporary = temporaryName(path)
  const file = await open(temporary, 'wx', 0o666)
  try {
    try {
      for (const part of parts) {
        for (let at = 0; at < part.byteLength; ) at += (await file.write(part, at, part.byteLength - at)).bytesWritten
      }
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
  const folder = await open(dirname(path), 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
