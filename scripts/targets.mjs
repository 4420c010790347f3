// The systems with a prebuilt addon, each of them the package @st-moe/<name>, and what the Zig compiler calls them. On
// Linux, glibc 2.28 is the oldest that Node 20 runs on.
export const targets = {
  'linux-x64-glibc': 'x86_64-linux-gnu.2.28',
  'linux-x64-musl': 'x86_64-linux-musl',
  'linux-arm64-glibc': 'aarch64-linux-gnu.2.28',
  'linux-arm64-musl': 'aarch64-linux-musl',
  'win32-x64': 'x86_64-windows-gnu',
  'win32-arm64': 'aarch64-windows-gnu',
  'darwin-x64': 'x86_64-macos.11.0',
  'darwin-arm64': 'aarch64-macos.11.0',
}

/** The systems with a CUDA plugin, and the prefix of the compilers for them in Debian: nvcc compiles with GCC. */
export const plugins = { 'linux-x64': 'x86_64-linux-gnu', 'linux-arm64': 'aarch64-linux-gnu' }

/** The plugin of each: for drivers from 580 on, and that of cuda12-toolkit.mjs for older ones, from 525 on. */
export const pluginFiles = [{ file: 'libst_moe_cuda.so' }, { file: 'libst_moe_cuda12.so', cuda12: true }]

/** The systems with a package of MPICH, @st-moe/mpich-<name>, and what PyPI calls them. */
export const mpichSystems = {
  'linux-x64': 'manylinux_2_28_x86_64',
  'linux-arm64': 'manylinux_2_28_aarch64',
  'darwin-arm64': 'macosx_11_0_arm64',
}

/** { platform, arch, libc } in the words of Node and npm; `libc` is undefined except on Linux. */
export function systemOf(target) {
  const [platform, arch, libc] = target.split('-')
  return { platform, arch, libc }
}

/** The file of a target's addon, where node-gyp-build looks for it. */
export function addonOf(target) {
  const { platform, arch, libc } = systemOf(target)
  return `prebuilds/${platform}-${arch}/${['st-moe', libc, 'node'].filter(Boolean).join('.')}`
}

/** Of this machine. */
export function ownTarget() {
  const { platform, arch, report } = process
  const libc = platform === 'linux' ? [report.getReport().header.glibcVersionRuntime ? 'glibc' : 'musl'] : []
  return [platform, arch, ...libc].join('-')
}
