// Whether the packages that the install matrix and the emulators take from the npm registry are there, for every system:
// nobody here can run those of macOS and Windows. Prints what is missing.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { emulators } from './emulators.mjs'
import { nodes, runtimesOf, tools } from './install-matrix-tools.mjs'

const specs = [
  ...Object.keys(nodes).flatMap((system) => Object.values(runtimesOf(system)).map(({ spec }) => spec)),
  ...Object.values(tools),
  ...Object.values(emulators).flatMap(({ npm }) => (npm ? [`npm:${npm}`] : [])),
].map((spec) => /^npm:(.+)@(.+)$/.exec(spec).slice(1))

const missing = []
const names = [...new Set(specs.map(([name]) => name))]
for (const name of names) {
  const { stdout } = await promisify(execFile)('npm', ['view', name, 'versions', '--json'], {
    maxBuffer: 2 ** 26,
  }).catch(() => ({ stdout: '[]' }))
  const versions = [JSON.parse(stdout)].flat()
  missing.push(...specs.filter((spec) => spec[0] === name && !versions.includes(spec[1])).map((spec) => spec.join('@')))
}
for (const spec of missing) console.error(`not on the registry: ${spec}`)
console.log(`${specs.length - missing.length} of ${specs.length} packages are on the registry`)
if (missing.length > 0) process.exitCode = 1
