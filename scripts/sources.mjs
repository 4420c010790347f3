// The sources of dist/ as a hash. scripts/build.mjs writes it behind the entry, and tests that start programs of dist/
// compare it: an edit of lib/ that nobody has built is no result of theirs.
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const made = 'native-ops.ts' // from the declarations of native/core/ops
const mark = /^\/\/ sources (\w+)\n$/m

/** A hash of the files that dist/ is built from. */
export function hashOfSources() {
  const hash = createHash('sha256')
  const files = ['lib', 'language-model', 'cli'].flatMap((folder) =>
    readdirSync(path.join(root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name !== made)
      .map((entry) => path.join(entry.parentPath, entry.name)),
  )
  for (const file of [...files, path.join(root, 'scripts/build.mjs')].sort())
    hash.update(path.relative(root, file)).update('\0').update(readFileSync(file)).update('\0')
  return hash.digest('hex').slice(0, 16)
}

/** An entry with the hash behind it. */
export const marked = (source) => `${source}// sources ${hashOfSources()}\n`

/** Why dist/ must be built; null if it is what the sources make. */
export function faultOfBuild() {
  const entry = path.join(root, 'dist/index.js')
  if (!existsSync(entry)) return 'dist/ is missing: npm run build:ts'
  const [, hash] = mark.exec(readFileSync(entry, 'utf8')) ?? []
  return hash === hashOfSources()
    ? null
    : 'dist/ is of other sources than lib/, language-model/ and cli/: npm run build:ts'
}
