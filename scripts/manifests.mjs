// The package.json of each package that a release publishes, from that of the project.
import { systemOf } from './targets.mjs'

/**
 * `st-moe`, then `@st-moe/<target>` for each of `built`, then `st-moe-cuda` if there are plugins, such as for linux-x64. All have
 * `repository`: npm compares it with the provenance.
 */
export function manifestsOf(project, built, plugins) {
  const { scripts, devDependencies: _, allowScripts: __, ...published } = project
  const { version, engines, license, repository } = project
  const main = {
    ...published,
    scripts: { install: scripts.install },
    peerDependencies: { ...published.peerDependencies, 'st-moe-cuda': version },
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
  return { main, addons, cuda: plugins.length > 0 ? cuda : null }
}
