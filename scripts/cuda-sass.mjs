// Counts in the machine code of kernels, which nvdisasm prints: accesses to local memory, and the instructions that a
// thread issues for the bytes of global memory that it reads and writes.
import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { unpackWheels } from './python.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))

/** nvdisasm of the PATH, or else its wheel, unpacked in build/; null if that cannot be had. */
export function findNvdisasm() {
  if (!spawnSync('nvdisasm', ['--version']).error) return 'nvdisasm'
  const folder = path.join(root, 'build/nvdisasm')
  const program = path.join(folder, 'nvidia/cu13/bin/nvdisasm')
  if (existsSync(program)) return program
  const pinned = readFileSync(path.join(root, 'scripts/cuda-requirements.txt'), 'utf8')
  const [wheel] = /^nvidia-cuda-nvdisasm==(.*\\\n)*.*$/m.exec(pinned)
  try {
    unpackWheels(folder, `manylinux2014_${{ x64: 'x86_64', arm64: 'aarch64' }[process.arch]}`, [wheel])
  } catch (error) {
    console.error(`no nvdisasm, so machine code is not counted: ${error.message}`)
    return null
  }
  chmodSync(program, 0o755)
  return program
}

/** {instructions, read, write, local} of each kernel of a file of machine code, by mangled name. */
export function sassOf(nvdisasm, cubin) {
  const text = execFileSync(nvdisasm, ['-c', cubin], { encoding: 'utf8', maxBuffer: 2 ** 30 })
  return new Map(
    text
      .split(/^\t\.section\t\.text\./m)
      .slice(1)
      .map((part) => [part.slice(0, part.indexOf(',')), countsOf(part)]),
  )
}

/** The instructions of a kernel, and where its labels are. */
function parse(text) {
  const labels = new Map()
  const instructions = []
  for (const line of text.split('\n')) {
    const label = /^(\.L_\w+):/.exec(line)?.[1]
    if (label) labels.set(label, instructions.length)
    const instruction = /^\s+\/\*[0-9a-f]{4,}\*\/\s+(.*?) ?;/.exec(line)?.[1]
    if (instruction) instructions.push(instruction)
  }
  const code = instructions.map((instruction) => ({
    target: labels.get(/\bBRA(?:\.\w+)* .*`\((\.L_\w+)\)/.exec(instruction)?.[1]),
    ends: /^(BRA|EXIT|RET|BRX|BREAK)\b/.test(instruction), // unless a predicate comes before it
    read: bytesOf(instruction, 'LDG'),
    write: bytesOf(instruction, 'STG'),
    isLocal: /\b(LDL|STL)\b/.test(instruction),
  }))
  return code
}

/** The bytes of global memory that an instruction loads or stores. */
function bytesOf(instruction, kind) {
  const suffixes = new RegExp(`\\b${kind}\\.E(\\S*)`).exec(instruction)?.[1]
  if (suffixes === undefined) return 0
  const bits = /\.[US]?(8|16|64|128|256)\b/.exec(suffixes)?.[1] ?? 32
  return Number(bits) / 8
}

/**
 * Counts in the loop that accesses most bytes of global memory, or in the whole kernel if there is none: on the path
 * with most of its widest loads and of its stores of several values, and of those on the one of fewest instructions. So
 * code that few elements need, such as dropout or the division of subnormals, is left out.
 */
export function countsOf(text) {
  const code = parse(text)
  const loops = code.flatMap(({ target }, last) => (target <= last ? [pathOf(code, target, last)] : []))
  const bytes = ({ read, write }) => read + write
  const [hottest] = loops
    .filter((loop) => bytes(loop) > 0)
    .sort((a, b) => bytes(b) - bytes(a) || a.instructions - b.instructions)
  const { instructions, read, write } = hottest ?? pathOf(code, 0, code.length - 1)
  return { instructions, read, write, local: code.filter(({ isLocal }) => isLocal).length }
}

/** The bytes of a store of several values. */
const vector = 8

/** From instruction `first` to `last` without going back. */
function pathOf(code, first, last) {
  const length = last - first + 1
  const widest = Math.max(...code.slice(first, last + 1).map(({ read }) => read))
  const best = Array(length).fill(undefined)
  const reach = (i, path) => {
    const other = best[i]
    if (!other || path.wide > other.wide || (path.wide === other.wide && path.instructions < other.instructions))
      best[i] = path
  }
  const exits = []
  best[0] = { wide: 0, instructions: 0, read: 0, write: 0 }
  for (let i = 0; i < length; i++) {
    const before = best[i]
    if (!before) continue
    const { target, ends, read, write } = code[first + i]
    const path = {
      wide: before.wide + (write >= vector || (read > 0 && read === widest) ? 1 : 0),
      instructions: before.instructions + 1,
      read: before.read + read,
      write: before.write + write,
    }
    if (i === length - 1 || (ends && target === undefined)) exits.push(path)
    if (target > first + i && target <= last) reach(target - first, path)
    if (!ends && i < length - 1) reach(i + 1, path)
  }
  exits.sort((a, b) => b.wide - a.wide || a.instructions - b.instructions)
  return exits[0] ?? { instructions: 0, read: 0, write: 0 }
}
