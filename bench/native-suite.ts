import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Result } from './report.js'
import type { Bench, Found } from './suite.js'

const root = fileURLToPath(new URL('..', import.meta.url))

function run(command: string, ...args: string[]): void {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 'inherit'] })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? `exit code ${status}`}`)
}

/** st-moe-bench: what the machine can do, and the products and the layer of the CPU backend without JavaScript. */
export async function nativeSuite({ threads, repetitions, quick }: Bench): Promise<Found> {
  run('npm', 'run', '--silent', 'build:bench')
  const folder = mkdtempSync(join(tmpdir(), 'st-moe-bench-'))
  try {
    const results: Result[] = []
    const versions: Record<string, string> = {}
    // The long list of sizes has fewer repetitions.
    for (const [suites, turns] of [
      ['floors,gemm,layer', Math.min(repetitions, 5)],
      ['scaling', Math.min(repetitions, 3)],
    ] as const) {
      const json = join(folder, 'report.json')
      const settings = quick ? ['--quick'] : ['--repetitions', String(turns)]
      run(
        'build/bench/native/st-moe-bench',
        '--suite',
        suites,
        '--threads',
        threads.join(),
        '--json',
        json,
        ...settings,
      )
      const { onednn, results: found } = JSON.parse(readFileSync(json, 'utf8'))
      if (onednn) versions.onednn = onednn
      results.push(...found)
    }
    return { results, versions }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
