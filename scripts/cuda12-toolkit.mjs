// A toolkit that compiles for drivers from 525 on, which CUDA 13 does not. NVIDIA's wheels of CUDA 12 have its assembler,
// headers and static runtime, but not its compiler; that of CUDA 13 stands in. What it makes is PTX, a stable language
// whose version is the first line of a file: with the version of CUDA 12.8 the assembler of 12.9 takes it, so kernels
// are machine code of CUDA 12, and the program around them is linked with the runtime of CUDA 12.
//
//   node scripts/cuda12-toolkit.mjs      makes it for this machine and prints the path of its nvcc
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { unpackWheels } from './python.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const ptxVersion = '8.7' // of CUDA 12.8: drivers that compile PTX for GPUs newer than these kernels know it

/** The folder of a toolkit, of which nvcc says where it is. */
function toolkitOf(nvcc) {
  const { stderr } = spawnSync(nvcc, ['--dryrun', '-x', 'cu', '/dev/null', '-o', '/dev/null'], { encoding: 'utf8' })
  const top = /^#\$ TOP=(.*)$/m.exec(stderr ?? '')?.[1]
  if (!top) throw new Error(`cuda12-toolkit: ${nvcc} does not say where its toolkit is: ${stderr}`)
  return path.resolve(top)
}

/** Makes it in a folder of build/, unless it is there, and returns its nvcc. `processor` is that of the plugin: x86_64 or aarch64. */
export function makeCuda12Toolkit(nvcc, processor) {
  const folder = path.join(root, 'build/cuda12-toolkit', processor)
  const own = { x64: 'x86_64', arm64: 'aarch64' }[process.arch]
  const wanted = readFileSync(path.join(root, 'scripts/cuda12-requirements.txt'), 'utf8')
  const wheel = (part) => wanted.match(new RegExp(`^nvidia-cuda-${part}-cu12==(.*\\\\\n)*.*$`, 'm'))[0]
  const compiler = toolkitOf(nvcc)
  const at = (...names) => path.join(folder, ...names)
  const from = `${compiler}\n${wanted}`
  if (existsSync(at('made-from')) && readFileSync(at('made-from'), 'utf8') === from) return at('bin/nvcc')
  rmSync(folder, { recursive: true, force: true })
  unpackWheels(path.join(folder, 'tools'), `manylinux2014_${own}`, [wheel('nvcc')])
  unpackWheels(path.join(folder, 'runtime'), `manylinux2014_${processor}`, [wheel('runtime')])
  const assembler = path.join(folder, 'tools/nvidia/cuda_nvcc')
  const runtime = path.join(folder, 'runtime/nvidia/cuda_runtime')
  for (const name of ['bin', 'nvvm/bin', 'include', 'lib64']) mkdirSync(at(name), { recursive: true })
  const link = (from, ...to) => symlinkSync(from, at(...to))

  for (const name of ['nvcc', 'nvcc.profile']) copyFileSync(path.join(compiler, 'bin', name), at('bin', name))
  chmodSync(at('bin/nvcc'), 0o755)
  for (const name of ['cudafe++', 'fatbinary', 'nvlink', 'bin2c', 'crt'])
    link(path.join(compiler, 'bin', name), 'bin', name)
  link(path.join(assembler, 'bin/ptxas'), 'bin/ptxas')
  chmodSync(path.join(assembler, 'bin/ptxas'), 0o755)
  link(path.join(compiler, 'nvvm/libdevice'), 'nvvm/libdevice')
  const cicc = `#!/bin/sh
"${path.join(compiler, 'nvvm/bin/cicc')}" "$@" || exit
for argument; do [ "$previous" = -o ] && sed -i '1,20s/^\\.version .*/.version ${ptxVersion}/' "$argument"; previous=$argument; done
`
  writeFileSync(at('nvvm/bin/cicc'), cicc, { mode: 0o755 })
  for (const name of readdirSync(path.join(runtime, 'include')))
    link(path.join(runtime, 'include', name), 'include', name)
  const ofCompiler = ['crt', 'fatbinary_section.h', 'nvtx3'].filter((name) =>
    existsSync(path.join(compiler, 'include', name)),
  )
  for (const name of ofCompiler) link(path.join(compiler, 'include', name), 'include', name)
  for (const name of ['libcudart_static.a', 'libcudadevrt.a']) link(path.join(runtime, 'lib', name), 'lib64', name)
  writeFileSync(at('made-from'), from)
  return at('bin/nvcc')
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  console.log(makeCuda12Toolkit(process.env.CUDACXX ?? 'nvcc', process.arch === 'arm64' ? 'aarch64' : 'x86_64'))
