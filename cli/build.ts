import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { packageRoot } from '../lib/doctor/index.js'
import { command } from './command.js'
import { Failure } from './errors.js'

/** `st-moe build`: runs before there is an addon to load. */
export const build = command({
  program: 'st-moe build',
  summary: 'Compiles the addon on this machine, where there is no prebuilt one.',
  flags: {},
  examples: [['st-moe build', 'compile, or list what is missing for that']],
  notes: `Needs a C++ compiler, make or Ninja, CMake, and the packages cmake-js and node-addon-api; on Windows Visual Studio
with its Clang (--toolset ClangCL), and CMake. What it compiles is used before a prebuilt addon.`,
  run() {
    const script = join(packageRoot, 'scripts/install.cjs')
    const env = { ...process.env, npm_config_build_from_source: 'true' }
    try {
      const { status, error } = spawnSync(process.execPath, [script], { env, stdio: 'inherit' })
      if (error) throw error
      return status === 0 ? 0 : 1
    } catch (error) {
      throw new Failure(`${process.execPath} cannot be started: ${(error as Error).message}`) // without permission, too
    }
  },
})
