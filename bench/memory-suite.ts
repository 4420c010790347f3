import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { quickSizes, seedSizes } from './layer.js'
import type { Implementation } from './layer-peers.js'
import { Peer } from './peer.js'
import type { MemoryResult } from './report.js'
import type { Bench, Found } from './suite.js'

/**
 * How much memory does forward and backward need beyond parameters and gradients (of parameters, input and output)? Each
 * in a process of its own that runs a small layer first, so that libraries and threads are there before.
 */
export async function memorySuite({ threads, quick, peers }: Bench): Promise<Found> {
  const sizes = quick ? quickSizes : { ...seedSizes, tokens: 4096 }
  const count = Math.max(...threads)
  const memory = [ours(count, sizes)]
  if (peers) {
    memory.push(await theirs('st-moe-pytorch', count, sizes))
    memory.push(await theirs('index-pytorch', count, sizes))
  }
  return { results: [], memory }
}

type Sizes = typeof seedSizes

function ours(threads: number, sizes: Sizes): MemoryResult {
  const program = fileURLToPath(new URL('memory-child.ts', import.meta.url))
  const { status, stdout, stderr, error } = spawnSync(
    process.execPath,
    ['--import', 'tsx', program, JSON.stringify({ threads, sizes })],
    { encoding: 'utf8', cwd: fileURLToPath(new URL('..', import.meta.url)) },
  )
  if (status !== 0) throw new Error(`bench/memory-child.ts failed: ${error?.message ?? stderr}`)
  return { implementation: 'st-moe', tokens: sizes.tokens, ...JSON.parse(stdout) }
}

async function theirs(implementation: Implementation, threads: number, sizes: Sizes): Promise<MemoryResult> {
  const peer = new Peer()
  try {
    await peer.threads(threads)
    const run = async (name: string, { batch, tokens, dim, experts }: Sizes) => {
      await peer.ask({ do: 'layer', name, implementation, dim, experts })
      await peer.ask({ do: 'input', name, batch, tokens })
      await peer.time(name, 'forward+backward')
    }
    await run('small', quickSizes)
    const before = await peer.ask<{ now: number }>({ do: 'memory' })
    await run('layer', sizes)
    const after = await peer.ask<{ peak: number }>({ do: 'memory' })
    const parameters = await peer.ask<number>({ do: 'parameter_bytes', name: 'layer' })
    const known = 2 * parameters + 2 * sizes.batch * sizes.tokens * sizes.dim * 4
    return { implementation, tokens: sizes.tokens, resident: after.peak - before.now - known }
  } finally {
    peer.end()
  }
}
