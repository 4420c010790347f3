// The CPU ops are compiled once per instruction set and linked into one addon. If two objects define the same weak
// symbol (an inline function, a template instance), the linker keeps one of them, perhaps the AVX-512 one, and an older
// CPU then crashes with an illegal instruction far from any kernel. So the objects of a variant may define external
// symbols only inside their own namespace. Usage: node scripts/check-isa.mjs [build folder]
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const build = process.argv[2] ?? fileURLToPath(new URL('../build', import.meta.url))

// Data that does not depend on compiler flags: type information, and the pointers to it for unwinding.
const harmless = /^(_ZTI|_ZTS|DW\.ref\.)/

function objectsIn(folder) {
  if (!existsSync(folder)) return []
  const entries = readdirSync(folder, { recursive: true }).map(String)
  return entries.filter((name) => /\.o(bj)?$/.test(name)).map((name) => path.join(folder, name))
}

/** [symbol, object] of each external definition. An upper-case type is global; V, W, u are merged by the linker. */
function definitions(objects) {
  const text = execFileSync('nm', ['-A', '-P', '--defined-only', '--extern-only', ...objects], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  })
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => {
      const at = line.lastIndexOf(': ')
      return [line.slice(at + 2).split(' ')[0], path.basename(line.slice(0, at))]
    })
}

const variants = existsSync(path.join(build, 'CMakeFiles'))
  ? readdirSync(path.join(build, 'CMakeFiles')).flatMap((name) => /^cpu_(\w+)\.dir$/.exec(name)?.[1] ?? [])
  : []
let failures = variants.length === 0 ? 1 : 0
if (failures) console.error(`no objects of the CPU variants in ${build}: build first`)

for (const variant of variants) {
  const objects = objectsIn(path.join(build, 'CMakeFiles', `cpu_${variant}.dir`))
  const own = `6st_moe3cpu${variant.length}${variant}`
  const found = objects.length > 0 ? definitions(objects) : []
  const foreign = found.filter(([symbol]) => !symbol.includes(own) && !harmless.test(symbol))
  for (const [symbol, object] of foreign) console.error(`${variant}: ${object} defines ${symbol}`)
  const ok = foreign.length === 0 && found.length > 0
  if (!ok) failures++
  console.log(`${ok ? 'ok' : 'FAILED'} ${variant}: ${objects.length} objects, ${found.length} external definitions`)
}
process.exitCode = failures ? 1 : 0
