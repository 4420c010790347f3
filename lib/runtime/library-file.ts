import { closeSync, constants, fstatSync, openSync, readFileSync, readSync } from 'node:fs'

const ELF_HEADER = 64
const ELF_SECTION = 64
const STRING_TABLE = 3

/**
 * Why a shared library must not be loaded, or null. The system's loader maps a file without checking its length and
 * crashes with SIGBUS on a truncated one, so the section table, at the end of the file, is checked first. Only 64-bit
 * ELF is checked: other loaders report an error.
 */
export function damageOf(path: string): string | null {
  let file: number
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK) // else a pipe waits for its writer
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    return code === 'ENOENT' ? 'there is no such file' : message
  }
  try {
    const status = fstatSync(file)
    if (!status.isFile()) return 'it is not a regular file'
    const { size } = status
    const header = Buffer.alloc(ELF_HEADER)
    const length = readSync(file, header, 0, ELF_HEADER, 0)
    if (length === 0) return 'the file is empty'
    const isElf64 = header.readUInt32BE(0) === 0x7f454c46 && header[4] === 2
    if (!isElf64 || length < ELF_HEADER) return null
    const sections = Number(header.readBigUInt64LE(0x28))
    const [count, names] = [header.readUInt16LE(0x3c), header.readUInt16LE(0x3e)]
    const end = sections + count * ELF_SECTION
    if (end > size) return `the file is damaged: it has ${size} bytes, its header requires ${end}`
    const section = Buffer.alloc(ELF_SECTION)
    readSync(file, section, 0, ELF_SECTION, sections + names * ELF_SECTION)
    if (section.readUInt32LE(4) !== STRING_TABLE) return 'the file is damaged: its section table is invalid'
    return null
  } catch (error) {
    return (error as Error).message
  } finally {
    closeSync(file)
  }
}

const DYNAMIC = 6
const DYNAMIC_ENTRY = 16
const SONAME = 14n

/** The name by which programs link to a shared library; null if it has none, or is not a 64-bit ELF file. */
export function sonameOf(path: string): string | null {
  try {
    const bytes = readFileSync(path)
    if (bytes.readUInt32BE(0) !== 0x7f454c46 || bytes[4] !== 2) return null
    const sections = Number(bytes.readBigUInt64LE(0x28))
    const at = (section: number, field: number) => sections + section * ELF_SECTION + field
    const startOf = (section: number) => Number(bytes.readBigUInt64LE(at(section, 24)))
    for (let section = 0; section < bytes.readUInt16LE(0x3c); section++) {
      if (bytes.readUInt32LE(at(section, 4)) !== DYNAMIC) continue
      const texts = startOf(bytes.readUInt32LE(at(section, 40)))
      const end = startOf(section) + Number(bytes.readBigUInt64LE(at(section, 32)))
      for (let entry = startOf(section); entry < end; entry += DYNAMIC_ENTRY) {
        if (bytes.readBigUInt64LE(entry) !== SONAME) continue
        const text = texts + Number(bytes.readBigUInt64LE(entry + 8))
        return bytes.toString('latin1', text, bytes.indexOf(0, text))
      }
    }
  } catch {} // a damaged file, or none
  return null
}
