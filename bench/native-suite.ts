import { spawn, spawnSync } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { evaluated, type Line } from './measured.js'
import type { Bench, Found, Result } from './report.js'
import { lineOf } from './table.js'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Runs st-moe-bench. What it measures is evaluated and printed group by group. */
async function measure(suites: string, turns: number, { threads, quick }: Bench, found: Found): Promise<void> {
  const settings = quick ? ['--quick'] : ['--repetitions', String(turns)]
  const child = spawn(
    'build/bench/native/st-moe-bench',
    ['--suite', suites, '--threads', threads.join(), ...settings],
    {
      cwd: root,
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  )
  const ended = new Promise<number | null>((resolve, reject) => child.once('close', resolve).once('error', reject))
  for await (const text of createInterface(child.stdout)) {
    const { cases, onednn } = JSON.parse(text) as Line & { onednn?: string }
    if (onednn) found.versions = { onednn }
    const results: Result[] = evaluated(cases ?? [])
    for (const result of results) console.error(lineOf(result, []))
    found.results.push(...results)
  }
  const status = await ended
  if (status !== 0) throw new Error(`st-moe-bench --suite ${suites}: exit code ${status}`)
}

const build = (): void => {
  const { status, error } = spawnSync('npm', ['run', '--silent', 'build:bench'], { cwd: root, stdio: ['ignore', 2, 2] })
  if (status !== 0) throw new Error(`npm run build:bench: ${error?.message ?? `exit code ${status}`}`)
}

/** What can the machine do, and how near are GEMMs and layer, without JavaScript? The long list of sizes has fewer turns. */
export async function nativeSuite(bench: Bench): Promise<Found> {
  const found: Found = { results: [] }
  build()
  await measure('limits,gemm,layer', Math.min(bench.repetitions, 5), bench, found)
  await measure('scaling', Math.min(bench.repetitions, 3), bench, found)
  return found
}

/** How near is each op of the CPU backend to what the machine can do? */
export async function opSuite(bench: Bench): Promise<Found> {
  const found: Found = { results: [] }
  build()
  await measure('ops', bench.repetitions, bench, found)
  return found
}
