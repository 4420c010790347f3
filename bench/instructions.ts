import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { type Counts, ExecutedCounter } from './executed.js'
import { main } from './main.js'
import { digits, markdownTable } from './table.js'

/**
 * Counts what the GEMMs of the layer execute on arm64, and on x64 with AVX2 to compare with: on one thread, under
 * Debian's qemu-user. No time is measured.
 */

const root = fileURLToPath(new URL('..', import.meta.url))

const x64 = { target: 'linux-x64-musl', qemu: ['qemu-x86_64', '-cpu', 'max'], memory: /^(?!lea|nop|prefetch).*\(/ }
const arm64 = { target: 'linux-arm64-musl', qemu: ['qemu-aarch64'], memory: /^(ld|st)/ }

/** `isa`: a value of ST_MOE_ISA; `products`: of one multiply-add. */
const variants = [
  { ...x64, isa: 'avx2', compute: 'f32', fma: /^vfn?m/, products: 8 },
  { ...arm64, isa: 'baseline', compute: 'f32', fma: /^fmla/, products: 4 },
  { ...arm64, isa: 'neonbf16', compute: 'bf16', fma: /^bfdot/, products: 8 },
]
type Variant = (typeof variants)[number]

const gemms = ['a', 'y', 'dh', 'dx', 'dw1', 'dw2'] // bench/native/kernels.h
const rows = 160

interface Run {
  executed: Counts
  products: number // of one GEMM
}

/** All that the program executes, start and operands too; null if it has no packed weights of that kind. */
async function run(variant: Variant, gemm: string, weights: string, times: number): Promise<Run | null> {
  const program = `build/${variant.target}-bench/bench/native/st-moe-one-gemm`
  const args = [gemm, String(rows), variant.compute, weights, String(times)]
  const [qemu, ...options] = [...variant.qemu, '-d', 'in_asm,exec,nochain']
  const env = { ...process.env, ST_MOE_ISA: variant.isa }
  const child = spawn(qemu, [...options, program, ...args], { cwd: root, env, stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text
  })
  const counter = new ExecutedCounter(variant)
  let rest = ''
  const readLog = async () => {
    for await (const text of child.stderr.setEncoding('latin1')) {
      const lines = (rest + text).split('\n')
      rest = lines.pop() ?? ''
      for (const line of lines) counter.add(line)
    }
  }
  const [[status]] = await Promise.all([once(child, 'close'), readLog()])
  if (status === 3) return null
  const [isa, products] = output.trim().split(' ')
  if (status !== 0 || isa !== variant.isa)
    throw new Error(`${program} ${args.join(' ')} ended with ${status}: ${rest}${output}`)
  return { executed: counter.total, products: Number(products) }
}

/** Two GEMMs less one. */
async function row(variant: Variant, gemm: string, weights: string): Promise<string[] | null> {
  const [two, one] = await Promise.all([2, 1].map((times) => run(variant, gemm, weights, times)))
  if (!two || !one) return null
  const needed = one.products / variant.products
  const perNeeded = (kind: keyof Counts) => digits((two.executed[kind] - one.executed[kind]) / needed)
  return [variant.isa, variant.compute, gemm, weights, perNeeded('fma'), perNeeded('all'), perNeeded('memory')]
}

await main(import.meta.url, 'instructions', async () => {
  const targets = [...new Set(variants.map(({ target }) => target))].flatMap((target) => ['--target', target])
  execFileSync(process.execPath, ['scripts/prebuilds.mjs', '--bench', ...targets], { cwd: root, stdio: 'inherit' })
  const table: string[][] = []
  for (const variant of variants)
    for (const gemm of gemms)
      for (const weights of ['plain', 'packed']) {
        const cells = await row(variant, gemm, weights)
        if (cells) table.push(cells)
      }
  console.log(`\n${rows} rows of each expert. For each multiply-add that a GEMM needs:\n`)
  const header = ['instruction set', 'operands', 'GEMM', 'weights', 'multiply-adds', 'instructions', 'of these, memory']
  console.log(markdownTable(header, table))
})
