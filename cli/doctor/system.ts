import { readFileSync } from 'node:fs'
import { availableParallelism, cpus, totalmem } from 'node:os'
import { addonPlaces, glibc } from '../../lib/doctor/index.js'
import { packageVersion } from '../version.js'

/** Facts that do not need the addon. */
export interface SystemFacts {
  version: string
  runtime: { name: string; version: string; nodeApi: string | null; modules: string | null; supported: boolean }
  platform: string
  /** Such as `glibc 2.36`; null if Node does not report it. */
  libc: string | null
  cpu: { model: string; cores: number; features: string[] | null; memory: number }
  places: { folder: string; addons: string[] }[]
}

export function systemFacts(): SystemFacts {
  return {
    version: packageVersion(),
    runtime: runtime(),
    platform: `${process.platform}-${process.arch}`,
    libc: libc(),
    cpu: {
      model: cpus()[0]?.model.trim() ?? 'unknown',
      cores: availableParallelism(),
      features: cpuFeatures(),
      memory: totalmem(),
    },
    places: addonPlaces(),
  }
}

const runtimes = { bun: 'Bun', deno: 'Deno', electron: 'Electron', node: 'Node.js' }

function runtime(): SystemFacts['runtime'] {
  const versions = process.versions as Record<string, string | undefined>
  const [key, name] = Object.entries(runtimes).find(([key]) => versions[key])!
  const { node, napi = null, modules = null } = versions
  const [major, minor] = node!.split('.').map(Number)
  const supported = major > 20 || (major === 20 && minor >= 19)
  return { name, version: versions[key]!, nodeApi: napi, modules, supported }
}

function libc(): string | null {
  if (process.platform !== 'linux') return null
  try {
    const version = glibc()
    return version ? `glibc ${version}` : 'not glibc'
  } catch {
    return null // this runtime has no reports
  }
}

/** Features that select kernels; null if the system does not list them. */
const interesting =
  /^(sse4_2|avx|f16c|fma|bmi2|avx2|avx512(f|bw|dq|vl|cd|_bf16|_fp16)|amx_(bf16|tile)|asimd|bf16|i8mm|sve2?)$/

function cpuFeatures(): string[] | null {
  try {
    const [, flags] = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8')) ?? []
    return flags === undefined ? null : flags.split(' ').filter((flag) => interesting.test(flag))
  } catch {
    return null
  }
}
