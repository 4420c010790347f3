// The package.json of each package that a release publishes, from that of the project.
import { systemOf } from './targets.mjs'

/**
 * `st-moe`, then `@st-moe/<target>` for each of `built`, then `st-moe-cuda` if there are plugins, such as for linux-x64, then
 * `@st-moe/mpich-<system>` for each of `mpich`. All have `repository`: npm compares it with the provenance. Package managers
 * install neither CUDA nor MPICH unasked: they are optional peers.
 */
export function manifestsOf(project, built, plugins, mpich = []) {
  const { scripts, devDependencies: _, allowScripts: __, ...published } = project
  const { version, engines, license, repository } = project
  const mpichName = (system) => `@st-moe/mpich-${system}`
  const of = (value) => Object.fromEntries(mpich.map((system) => [mpichName(system), value(system)]))
  const main = {
    ...published,
    scripts: { install: scripts.install },
    peerDependencies: { ...published.peerDependencies, 'st-moe-cuda': version, ...of(() => version) },
    peerDependenciesMeta: { ...published.peerDependenciesMeta, ...of(() => ({ optional: true })) },
    optionalDependencies: Object.fromEntries(built.map((target) => [`@st-moe/${target}`, version])),
  }
  const addons = built.map((target) => {
    const { platform, arch, libc } = systemOf(target)
    const system = { os: [platform], cpu: [arch], ...(libc && { libc: [libc] }) }
    const description = `The compiled part of st-moe for ${target}, which installs it.`
    return { name: `@st-moe/${target}`, version, description, license, repository, engines, ...system }
  })
  const cuda = {
    name: 'st-moe-cuda',
    version,
    description: 'The CUDA plugin of st-moe: npm install st-moe st-moe-cuda',
    license,
    repository,
    engines,
    peerDependencies: { 'st-moe': version },
    os: ['linux'],
    cpu: plugins.map((name) => systemOf(name).arch),
    libc: ['glibc'], // musl has no CUDA driver
  }
  const libraries = mpich.map((system) => {
    const { platform, arch } = systemOf(system)
    return {
      name: mpichName(system),
      version,
      description: `MPICH for process groups of st-moe on ${system}: npm install st-moe ${mpichName(system)}`,
      license: 'SEE LICENSE IN licenses/LICENSE',
      repository,
      os: [platform],
      cpu: [arch],
      ...(platform === 'linux' && { libc: ['glibc'] }),
    }
  })
  return { main, addons, cuda: plugins.length > 0 ? cuda : null, mpich: libraries }
}
