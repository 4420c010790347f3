// Counts what decides the memory speed of the CUDA kernels, in the PTX and the machine code (SASS) that nvcc makes of
// them; needs no GPU. Prints a row per kernel: global loads and stores of 128 bits and narrower ones; stores of single values, loads after a store and
// integer divisions in its innermost loops; all integer divisions; instructions on doubles in innermost loops; registers;
// bytes spilled, and bytes of a stack frame, where arrays are that no register holds; occupancy: of the threads that a
// multiprocessor can hold, the percentage for which its registers suffice; loads and stores of local memory; the
// instructions of the loop that accesses most global memory, and the bytes that it reads and writes (cuda-sass.mjs).
// Fails if a kernel of the budget is worse than that says, or if a hot kernel issues more instructions for a byte than
// bench/cuda/instructions.json says of its architecture. --write writes that file; the roofline reads it.
// Usage: node scripts/cuda-kernels.mjs [--arch sm_90] [--budget] [--write] [file.cu ...]; --budget prints its kernels
// and the hot ones alone.
import { execFile, execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import { plainName } from '../bench/kernel-names.mjs'
import { findNvdisasm, sassOf } from './cuda-sass.mjs'

/** Registers are given to a thread in steps of 8. */
const registerStep = 8

// The kernels of the budget: they have accesses of 128 bits, no integer division in an innermost loop, no spill, no
// stack frame, no load after a store in an innermost loop but for those that keep tiles of products (attention and the
// choice of few experts), and registers for half of the threads of a multiprocessor, those of tiles for a quarter.
// (Activations in float64 are not held to the last two.) Those of rows, in the instance that takes as many values at once as 128 bits hold
// (its last argument), also have no store of single values there, and no double if values are floats. Element-wise ones
// have no division at all, those that write the copy of a weight but for one in 4,096 elements; that of integers is never
// called. Those of sums, in the same instance, also store sums of rows or tiles.
const rows = [
  'AddBias',
  'AttentionDelta',
  'CombineRows',
  'CrossEntropyBackwardRow',
  'EmbeddingRow',
  'GatherRows',
  'LayernormBackwardRow',
  'LayernormRow',
  'LoadRow',
  'RmsnormBackwardRow',
  'RmsnormRow',
  'RowDots',
  'ScatterRow',
  'SoftmaxBackwardRow',
  'SoftmaxRow',
  'activate_kernel',
  'row_losses_kernel',
  'sum_chunks_kernel',
  'sum_rows_kernel',
].map((name) => new RegExp(`\\b${name}<(?!float.*\\b2>+$).*\\b[248]>+$`))
const elements = [/^vectors_kernel<(?!\d, Row<3, unsigned)/, /^(update|sum_squares|clip_norm)_kernel</]
const tiles = /^(attention|attention_backward|choose)_kernel<(float.* 4|double.* 2)>$/
const sums = [tiles, /^hidden_kernel<(float.* 4|double.* 2)>$/]
const budget = [...rows, ...elements, ...sums]

const doubleActivations = /^(activate|hidden)_kernel<double/

/** In percent. */
const leastOccupancy = (name) => (tiles.test(name) ? 25 : doubleActivations.test(name) ? 0 : 50)

const root = fileURLToPath(new URL('..', import.meta.url))
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { arch: { type: 'string', default: 'sm_90' }, budget: { type: 'boolean' }, write: { type: 'boolean' } },
})
const hotFile = path.join(root, 'bench/cuda/instructions.json')
const hot = JSON.parse(readFileSync(hotFile, 'utf8'))
const nvdisasm = findNvdisasm()
if (values.write && !nvdisasm) process.exit(1)
const run = promisify(execFile)
const folder = path.join(root, 'native/cuda')
const files = positionals.length
  ? positionals
  : readdirSync(folder)
      .filter((name) => name.endsWith('.cu'))
      .map((name) => path.join(folder, name))

/** The innermost loops, as [first, last] line: a backward branch ends one. */
function innermostLoops(lines) {
  const labels = new Map(lines.flatMap((line, i) => (/^(\$\w+):/.test(line) ? [[line.slice(0, -1), i]] : [])))
  const loops = lines.flatMap((line, i) => {
    const target = labels.get(/\bbra(?:\.uni)?\s+(\$\w+);/.exec(line)?.[1])
    return target < i ? [[target, i]] : []
  })
  return loops.filter(([a, b]) => !loops.some(([c, d]) => (a < c && d <= b) || (a <= c && d < b)))
}

/** The bytes of each global access of a kind, ld or st, to values of a type. */
function accesses(lines, kind, type = '[busf]\\d+') {
  const pattern = new RegExp(`\\b${kind}(?:\\.volatile)?\\.global(?:\\.[a-z]+)*(?:\\.v(\\d))?\\.(${type})\\s`)
  return lines.flatMap((line) => {
    const [, count = 1, of] = pattern.exec(line) ?? []
    return of ? [(Number(count) * Number(of.slice(1))) / 8] : []
  })
}

/** The global loads of a loop that have to wait for a store of several values before them. */
function loadsAfterStore(loop) {
  const store = loop.findIndex((line) => accesses([line], 'st').some((bytes) => bytes >= 8))
  return store < 0 ? 0 : accesses(loop.slice(store), 'ld').length
}

const division = /\b(div|rem)\.[su]\d/

function kernel(text, resources, sass) {
  const lines = text.split('\n').map((line) => line.trim())
  const inner = innermostLoops(lines).map(([a, b]) => lines.slice(a, b + 1))
  const [loads, stores] = ['ld', 'st'].map((kind) => accesses(lines, kind))
  return {
    'ld.128': loads.filter((bytes) => bytes === 16).length,
    ld: loads.filter((bytes) => bytes !== 16).length,
    'st.128': stores.filter((bytes) => bytes === 16).length,
    st: stores.filter((bytes) => bytes !== 16).length,
    'st in loops': accesses(inner.flat(), 'st', '(?:f32|f64|[bu]16)').filter((bytes) => bytes < 8).length,
    'ld after st': inner.reduce((count, loop) => count + loadsAfterStore(loop), 0),
    'div in loops': inner.flat().filter((line) => division.test(line)).length,
    div: lines.filter((line) => division.test(line)).length,
    'f64 in loops': inner.flat().filter((line) => /\b(fma|add|sub|mul|div)(\.rn)?\.f64/.test(line)).length,
    ...resources,
    occupancy: occupancy(Number(/\.maxntid (\d+)/.exec(text)?.[1]), resources.registers),
    ...sass,
  }
}

/** What a multiprocessor has. */
function multiprocessorOf(arch) {
  const number = Number.parseInt(arch.slice('sm_'.length), 10)
  const threads = number === 75 ? 1024 : (number >= 86 && number < 90) || number >= 110 ? 1536 : 2048
  return { registers: 65536, threads }
}

function occupancy(threads, registers) {
  const multiprocessor = multiprocessorOf(values.arch)
  const ofBlock = threads * Math.ceil(registers / registerStep) * registerStep
  const resident = Math.min(Math.floor(multiprocessor.registers / ofBlock) * threads, multiprocessor.threads)
  return Math.floor((100 * resident) / multiprocessor.threads)
}

/** Registers and spills of each kernel, as ptxas reports them. */
function resourcesOf(report) {
  return new Map(
    report
      .split("Compiling entry function '")
      .slice(1)
      .map((part) => [
        part.slice(0, part.indexOf("'")),
        {
          registers: Number(/Used (\d+) registers/.exec(part)?.[1]),
          spills: Number(/(\d+) bytes spill stores/.exec(part)?.[1]),
          frame: Number(/(\d+) bytes stack frame/.exec(part)?.[1]),
        },
      ]),
  )
}

const plainNames = (mangled) =>
  execFileSync('c++filt', { input: mangled.join('\n'), encoding: 'utf8' })
    .split('\n')
    .map(plainName)

/** [name, counts] of each kernel of a file. */
async function kernelsOf(file, temporary) {
  const ptx = path.join(temporary, `${path.basename(file)}.ptx`)
  await run('nvcc', ['-std=c++20', '-I', path.join(root, 'native'), `-arch=${values.arch}`, '-ptx', '-o', ptx, file])
  const cubin = path.join(temporary, `${path.basename(file)}.cubin`)
  const { stderr } = await run('ptxas', ['-v', `-arch=${values.arch}`, '-o', cubin, ptx], { maxBuffer: 2 ** 26 })
  const resources = resourcesOf(stderr)
  const sass = nvdisasm ? sassOf(nvdisasm, cubin) : new Map()
  const entries = readFileSync(ptx, 'utf8')
    .split(/^\.(?:visible|weak) \.entry /m)
    .slice(1)
  const mangled = entries.map((text) => /^\w+/.exec(text)[0])
  const names = plainNames(mangled)
  return entries.map((text, i) => [names[i], kernel(text, resources.get(mangled[i]), sass.get(mangled[i]))])
}

/** What is wrong with a kernel of the budget. */
function faults(name, row) {
  const wrong = []
  if (row['ld.128'] + row['st.128'] === 0) wrong.push('no access of 128 bits')
  if (row.spills > 0) wrong.push('a spill')
  if (row.frame > 0) wrong.push('a stack frame')
  if (row.local > 0) wrong.push('accesses to local memory')
  if (row['div in loops'] > 0) wrong.push('an integer division in an innermost loop')
  if (!(row.occupancy >= leastOccupancy(name))) wrong.push(`an occupancy below ${leastOccupancy(name)} %`)
  if (!isOf([tiles, doubleActivations], name) && row['ld after st'] > 0) wrong.push('a load after a store')
  if (isOf(elements, name)) {
    if (row.div > 0 && !/KeptCopy/.test(name)) wrong.push('an integer division')
  } else if (!isOf(sums, name)) {
    if (row['st in loops'] > 0) wrong.push('stores of single values')
    if (row['f64 in loops'] > 0 && !/double|F64/.test(name)) wrong.push('a double per value')
  }
  return wrong.join(', ')
}

/** For a byte that the loop accesses. */
const instructionsPerByte = ({ instructions, read, write }) => instructions / (read + write)

/** Factor by which the instructions of a hot kernel may grow: versions of nvcc differ. */
const tolerated = 1.05

function tooManyInstructions(name, row) {
  const known = values.arch === hot.arch && hot.kernels[name]
  if (!known || !nvdisasm || values.write) return ''
  if (instructionsPerByte(row) <= tolerated * instructionsPerByte(known)) return ''
  const each = (counts) => (counts.instructions / known.elements).toFixed(0)
  return `${each(row)} instructions per element, instead of ${each(known)}`
}

/** The counts of this compiler, for the kernels that the file names. */
function writeInstructions() {
  for (const [name, { instructions, read, write }] of kernels)
    if (hot.kernels[name]) Object.assign(hot.kernels[name], { instructions, read, write })
  writeFileSync(hotFile, `${JSON.stringify(hot, null, 2)}\n`)
}

const isOf = (patterns, name) => patterns.some((pattern) => pattern.test(name))

const temporary = mkdtempSync(path.join(tmpdir(), 'cuda-kernels-'))
const kernels = []
try {
  const waiting = [...files]
  const work = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) kernels.push(...(await kernelsOf(file, temporary)))
  }
  await Promise.all(Array.from({ length: availableParallelism() }, work))
} finally {
  rmSync(temporary, { recursive: true })
}
kernels.sort(([a], [b]) => (a < b ? -1 : 1))

const columns = Object.keys(kernels[0][1])
console.log(columns.join('  '))
let failures = 0
for (const [name, row] of kernels) {
  const counts = isOf(budget, name)
  if (values.budget && !counts && !hot.kernels[name]) continue
  const wrong = [counts ? faults(name, row) : '', tooManyInstructions(name, row)].filter(Boolean).join(', ')
  if (wrong) failures++
  const cells = columns.map((column) => String(row[column]).padStart(column.length))
  console.log(`${cells.join('  ')}  ${name}${wrong && `: ${wrong}`}`)
}
if (!positionals.length) {
  const names = kernels.map(([name]) => name)
  const missing = [
    ...budget.filter((pattern) => !names.some((name) => pattern.test(name))),
    ...Object.keys(hot.kernels).filter((name) => !names.includes(name)),
  ]
  for (const kernel of missing) console.log(`${kernel}: no such kernel`)
  failures += missing.length
}
if (values.write) writeInstructions()
process.exitCode = failures ? 1 : 0
