// Prints how many objects of the addon a change of each file compiles again, by the compiler's own dependency files:
//   node scripts/touched-objects.mjs native/core/unary_kinds.inc [more files]
// With --most NUMBER it fails if one is more. The addon must have been built (npm run build:native).
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Each object of a build folder and the files that it depends on. */
function dependencies(build) {
  if (existsSync(path.join(build, '.ninja_deps'))) {
    const { stdout } = spawnSync('ninja', ['-C', build, '-t', 'deps'], { encoding: 'utf8', maxBuffer: 1 << 28 })
    return stdout.split(/\n\n/).map((entry) => {
      const [head, ...files] = entry.trim().split('\n')
      return [head.split(':')[0], files.map((file) => path.resolve(build, file.trim()))]
    })
  }
  const folder = path.join(build, 'CMakeFiles')
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.o.d'))
    .map((name) => {
      const words = readFileSync(path.join(folder, name), 'utf8').replaceAll('\\\n', ' ').split(/\s+/)
      return [`CMakeFiles/${name.slice(0, -2)}`, words.slice(1).map((file) => path.resolve(build, file))]
    })
}

/** The objects of the addon, by file: not those of tests and benchmarks, which may be in the same folder. */
export function touchedObjects(file, build = path.join(root, 'build')) {
  const wanted = path.join(root, file)
  return dependencies(build)
    .filter(
      ([object, files]) =>
        /^CMakeFiles\/(st_moe|st_moe_core|cpu_(?!.*_emulated)\w+)\.dir\//.test(object) && files.includes(wanted),
    )
    .map(([object]) => object)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values, positionals } = parseArgs({ options: { most: { type: 'string' } }, allowPositionals: true })
  for (const file of positionals) {
    const { length } = touchedObjects(file)
    console.log(`${file}: ${length} objects`)
    if (length === 0 || (values.most && length > Number(values.most))) process.exitCode = 1
  }
}
