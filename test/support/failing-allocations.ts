import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { temporary } from './temporary.js'

const { include_dir: headers } = createRequire(import.meta.url)('node-api-headers') as { include_dir: string }

const source = fileURLToPath(new URL('../native/failing_allocations.cc', import.meta.url))

/** Not on other systems than Linux, nor where the suite is compiled for another system, whose compiler is not here. */
export const canFailAllocations = process.platform === 'linux' && existsSync(source)

/** Compiles the addon that makes allocations fail, and returns its file. */
export function failingAllocations(): string {
  const file = join(temporary('st-moe-faults-'), 'failing_allocations.node')
  const { LD_PRELOAD: _, ...env } = process.env // a sanitizer is for the child alone
  execFileSync(
    process.env.CXX ?? 'c++',
    ['-std=c++17', '-O1', '-g', '-fno-omit-frame-pointer', '-shared', '-fPIC', `-I${headers}`, source, '-o', file],
    {
      env,
    },
  )
  return file
}
