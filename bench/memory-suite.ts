import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { memory, resetPeakMemory } from '../lib/index.js'
import { Layer, type LayerSizes, quickSizes, seedSizes } from './layer.js'
import type { Implementation } from './layer-peers.js'
import { main } from './main.js'
import { Peer } from './peer.js'
import type { Bench, Found, MemoryResult } from './report.js'

const kind = 'forward+backward'

/**
 * How much memory does forward and backward need beyond parameters and gradients (of parameters, input and output)? Each
 * in its own process, which runs a small layer first, so that libraries and threads are there before.
 */
export async function memorySuite({ threads, quick, peers }: Bench): Promise<Found> {
  const sizes = quick ? quickSizes : { ...seedSizes, tokens: 4096 }
  const count = Math.max(...threads)
  const memory = [ours(count, sizes)]
  for (const implementation of peers ? (['st-moe-pytorch', 'index-pytorch'] as const) : [])
    memory.push(await theirs(implementation, count, sizes))
  return { results: [], memory }
}

/** Bytes of parameters, their gradients, and those of input and output. */
const known = (parameters: number, { batch, tokens, dim }: LayerSizes): number =>
  2 * parameters + 2 * batch * tokens * dim * 4

function ours(threads: number, sizes: LayerSizes): MemoryResult {
  const child = ['--import', 'tsx', fileURLToPath(import.meta.url), JSON.stringify({ threads, sizes })]
  const { status, stdout, stderr, error } = spawnSync(process.execPath, child, {
    encoding: 'utf8',
    cwd: fileURLToPath(new URL('..', import.meta.url)),
  })
  if (status !== 0) throw new Error(`the process of our layer failed: ${error?.message ?? stderr}`)
  return { implementation: 'st-moe', tokens: sizes.tokens, ...JSON.parse(stdout) }
}

/** Bytes of this process in memory: now (VmRSS) or at most (VmHWM). */
function resident(which: 'VmRSS' | 'VmHWM'): number {
  const line = readFileSync('/proc/self/status', 'utf8').match(new RegExp(`${which}:\\s+(\\d+) kB`))
  return Number(line![1]) * 1024
}

await main(import.meta.url, 'bench/memory-suite.ts', ([settings]) => {
  const { threads, sizes } = JSON.parse(settings) as { threads: number; sizes: LayerSizes }
  {
    using small = new Layer(quickSizes)
    small.time(kind, threads)
  }
  const before = { resident: resident('VmRSS'), counted: memory().bytes }
  const layer = new Layer(sizes)
  resetPeakMemory()
  layer.time(kind, threads)
  const parameters = [...layer.moe.parameters()].reduce((sum, { size }) => sum + size * 4, 0)
  const found = {
    resident: resident('VmHWM') - before.resident - known(parameters, sizes),
    counted: memory().peakBytes - before.counted - known(parameters, sizes),
  }
  console.log(JSON.stringify(found))
})

async function theirs(implementation: Implementation, threads: number, sizes: LayerSizes): Promise<MemoryResult> {
  const peer = new Peer()
  try {
    await peer.threads(threads)
    const run = async (name: string, { batch, tokens, dim, experts }: LayerSizes) => {
      await peer.ask({ do: 'layer', name, implementation, dim, experts })
      await peer.ask({ do: 'input', name, batch, tokens })
      await peer.time(name, kind)
    }
    await run('small', quickSizes)
    const before = await peer.ask<{ now: number }>({ do: 'memory' })
    await run('layer', sizes)
    const after = await peer.ask<{ peak: number }>({ do: 'memory' })
    const parameters = await peer.ask<number>({ do: 'parameter_bytes', name: 'layer' })
    return {
      implementation,
      tokens: sizes.tokens,
      resident: after.peak - before.now - known(parameters, sizes),
    }
  } finally {
    peer.end()
  }
}
