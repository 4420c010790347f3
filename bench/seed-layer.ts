import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface, type Interface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { devices, getNumThreads, MoE, manualSeed, noGrad, randn, scope, setNumThreads } from 'st-moe'

/**
 * How long does the whole layer take beside st-moe-pytorch, on the same cores in the same run?
 * Alternating repetitions, medians. PyTorch is installed in a virtual environment under build/ when it is not there.
 */

const { values } = parseArgs({
  options: {
    threads: { type: 'string', default: String(getNumThreads()) },
    repetitions: { type: 'string', default: '7' },
    tokens: { type: 'string', default: '1024' },
    json: { type: 'boolean', default: false },
  },
})
const [threads, repetitions, tokens] = [values.threads, values.repetitions, values.tokens].map(Number)
const [dim, experts, batch] = [512, 16, 4]
const root = fileURLToPath(new URL('..', import.meta.url))
const python = join(root, 'build/peers-venv/bin/python')

function installPeer(): void {
  if (existsSync(python)) return
  console.error('Installing PyTorch and st-moe-pytorch in build/peers-venv …')
  const venv = join(root, 'build/peers-venv')
  for (const [command, ...args] of [
    ['python3', '-m', 'venv', venv],
    [python, '-m', 'pip', 'install', '--quiet', 'torch', 'st-moe-pytorch==0.1.8'],
  ]) {
    const { status } = spawnSync(command, args, { stdio: ['ignore', process.stderr, process.stderr] })
    if (status !== 0) throw new Error(`${command} ${args.join(' ')} failed`)
  }
}

class Peer {
  readonly #process: ChildProcessWithoutNullStreams
  readonly #lines: AsyncIterator<string>

  constructor() {
    const script = join(root, 'bench/peers/seed_layer.py')
    this.#process = spawn(python, [script, ...[threads, dim, experts, batch, tokens].map(String)])
    const reader: Interface = createInterface(this.#process.stdout)
    this.#lines = reader[Symbol.asyncIterator]()
  }

  async line(): Promise<string> {
    const { value, done } = await this.#lines.next()
    if (done) throw new Error('the PyTorch process ended')
    return value
  }

  async time(command: 'forward' | 'both'): Promise<number> {
    this.#process.stdin.write(`${command}\n`)
    return Number(await this.line())
  }

  end(): void {
    this.#process.stdin.end()
  }
}

function timed(run: () => void): number {
  const start = performance.now()
  scope(run)
  return performance.now() - start
}

const median = (list: number[]): number => [...list].sort((a, b) => a - b)[list.length >> 1]
const spread = (list: number[]): string => `${Math.min(...list).toFixed(0)}–${Math.max(...list).toFixed(0)}`

installPeer()
setNumThreads(threads)
manualSeed(0)
const moe = new MoE({ dim, numExperts: experts })
const x = randn([batch, tokens, dim], { requiresGrad: true })
const forward = () => void noGrad(() => moe.forward(x))
const both = () => {
  const { outputs, totalAuxLoss } = moe.forward(x)
  outputs.mean().add(totalAuxLoss).backward()
  moe.zeroGrad()
  x.grad = null
}

const peer = new Peer()
await peer.line()
const times = {
  forward: { ours: [] as number[], theirs: [] as number[] },
  both: { ours: [] as number[], theirs: [] as number[] },
}
for (let i = 0; i <= repetitions; i++) {
  for (const kind of ['forward', 'both'] as const) {
    const ours = timed(kind === 'forward' ? forward : both)
    const theirs = await peer.time(kind)
    if (i === 0) continue // warm-up
    times[kind].ours.push(ours)
    times[kind].theirs.push(theirs)
  }
}
peer.end()

const variant = devices()[0].variant
const rows = Object.entries(times).map(([kind, { ours, theirs }]) => ({
  kind: kind === 'both' ? 'forward + backward' : 'forward',
  ms: median(ours),
  range: spread(ours),
  peerMs: median(theirs),
  peerRange: spread(theirs),
  ratio: median(theirs) / median(ours),
}))
if (values.json) console.log(JSON.stringify({ threads, dim, experts, batch, tokens, repetitions, variant, rows }))
else {
  console.log(
    `dim ${dim}, ${experts} experts, top-2, ${batch} × ${tokens} tokens, float32, ${threads} threads, ${variant}`,
  )
  for (const { kind, ms, range, peerMs, peerRange, ratio } of rows) {
    console.log(
      `${kind.padEnd(20)} ${ms.toFixed(1)} ms (${range})   st-moe-pytorch ${peerMs.toFixed(1)} ms (${peerRange})   ${ratio.toFixed(2)} times as fast`,
    )
  }
}
