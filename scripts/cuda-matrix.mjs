// Compiles the kernels with every minor version of nvcc that PyPI has (CUDA 13: the packages of CUDA 12 lack the
// compiler) and with those given by path, such as Debian's of CUDA 12. A warning is an error. Linux on x64 or arm64.
//
//   node scripts/cuda-matrix.mjs [13.2 | path of an nvcc ...]
//
// Exit code 0: all compile it. The last line counts them.
import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, readdirSync, rmSync, symlinkSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { unpackWheels } from './python.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const versions = ['13.0', '13.1', '13.2', '13.3', '13.4', '13.5']
const parts = ['nvidia-cuda-nvcc', 'nvidia-nvvm', 'nvidia-cuda-crt', 'nvidia-cuda-runtime'] // of one version
const wheel = `manylinux2014_${{ x64: 'x86_64', arm64: 'aarch64' }[process.arch]}`

/** The nvcc of a version, as wheels that are unpacked in build/. */
function nvccOf(version) {
  const folder = path.join(root, 'build/cuda-matrix', version)
  const cuda = path.join(folder, 'nvidia/cu13')
  const nvcc = path.join(cuda, 'bin/nvcc')
  if (existsSync(nvcc)) return nvcc
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  unpackWheels(folder, wheel, [...parts.map((part) => `${part}==${version}.*`), 'nvidia-cuda-cccl==13.*'])
  for (const bin of ['bin', 'nvvm/bin'].map((name) => path.join(cuda, name)))
    for (const name of readdirSync(bin)) chmodSync(path.join(bin, name), 0o755)
  symlinkSync('lib', path.join(cuda, 'lib64')) // where nvcc looks for the runtime
  return nvcc
}

/** Whether it compiles them; prints what it says if not. */
function compiles(nvcc, name) {
  const build = path.join(root, 'build/cuda-matrix', `build-${name}`)
  const options = ['-DST_MOE_CUDA=ON', '-DST_MOE_CUDA_WERROR=ON', '-DCMAKE_CUDA_ARCHITECTURES=90']
  const commands = [
    ['cmake', '-S', root, '-B', build, `-DCMAKE_CUDA_COMPILER=${nvcc}`, ...options],
    ['cmake', '--build', build, '--parallel', String(os.availableParallelism()), '--target', 'st_moe_cuda_objects'],
  ]
  for (const [command, ...args] of commands) {
    const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 2 ** 28 })
    if (error) throw error
    if (status !== 0) {
      console.log(`${stdout}${stderr}`.split('\n').slice(-40).join('\n'))
      return false
    }
  }
  return true
}

const release = (nvcc) => /release (\S+),/.exec(execFileSync(nvcc, ['--version'], { encoding: 'utf8' }))[1]

const asked = process.argv.slice(2)
let failed = 0
const wanted = asked.length > 0 ? asked : versions
for (const item of wanted) {
  const nvcc = item.includes('/') ? path.resolve(item) : nvccOf(item)
  const version = release(nvcc)
  const good = compiles(nvcc, version)
  if (!good) failed++
  console.log(`${good ? 'ok    ' : 'FAILED'} nvcc ${version}`)
}
console.log(`${wanted.length - failed} passed, ${failed} failed`)
process.exitCode = failed > 0 ? 1 : 0
