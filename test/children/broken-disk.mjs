// Imported before a program: from the FAULT_FROM-th file on whose name begins with FAULT_FILE, writes to them fail with
// FAULT_CODE, as on a full or broken disk.
import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { basename } from 'node:path'

const { FAULT_CODE: code, FAULT_FILE: name, FAULT_FROM: from } = process.env
const { open, openSync, write, writeSync } = fs
const broken = new Set()
let count = 0

function opened(path, flags, file) {
  const writes = typeof flags === 'number' && (flags & fs.constants.O_CREAT) !== 0
  if (writes && basename(path).startsWith(name) && ++count >= Number(from)) broken.add(file)
  else broken.delete(file)
}
const fault = () => Object.assign(new Error(`${code}: as if, write`), { code, syscall: 'write' })

fs.openSync = (path, flags, mode) => {
  const file = openSync(path, flags, mode)
  opened(path, flags, file)
  return file
}
fs.open = (path, flags, mode, done) =>
  open(path, flags, mode, (error, file) => {
    if (!error) opened(path, flags, file)
    done(error, file)
  })
fs.writeSync = (file, ...rest) => {
  if (broken.has(file)) throw fault()
  return writeSync(file, ...rest)
}
fs.write = (file, ...rest) => (broken.has(file) ? setImmediate(rest.at(-1), fault()) : write(file, ...rest))
syncBuiltinESMExports()
