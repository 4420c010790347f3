// The system requirements of prebuilds/: prints the newest symbol versions and the libraries that each file needs, and
// fails above the limits, for a Node-API function that is too new, and for one that macOS has not:
//
//   node scripts/check-prebuilds.mjs [--glibc 2.34] [--glibcxx 3.4.29] [--cxxabi 1.3.13]
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { nodeApiFunctions } from './node-api.mjs'
import { prebuildsPython, zigFolder } from './python.mjs'

const { values: limits } = parseArgs({
  options: {
    glibc: { type: 'string', default: '2.34' },
    glibcxx: { type: 'string', default: '3.4.29' },
    cxxabi: { type: 'string', default: '1.3.13' },
  },
})
const root = fileURLToPath(new URL('..', import.meta.url))
const system = path.join(zigFolder(), 'lib/libc/darwin/libSystem.tbd')
const script = path.join(root, 'scripts/check-prebuilds.py')
const args = [script, limits.glibc, limits.glibcxx, limits.cxxabi, nodeApiFunctions().join(), system]
process.exitCode = spawnSync(prebuildsPython(), args, { cwd: root, stdio: 'inherit' }).status ?? 1
