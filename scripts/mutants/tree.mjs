// The copy of the working tree in which mutants are made, build/mutants/tree, so that the tree itself stays as it is.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, symlinkSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../..', import.meta.url))
export const tree = path.join(root, 'build/mutants/tree')

const git = (folder, ...args) => execFileSync('git', args, { cwd: folder, encoding: 'utf8', maxBuffer: 2 ** 28 })
const files = (folder, ...which) =>
  git(folder, 'ls-files', '-z', ...which)
    .split('\0')
    .filter(Boolean)
const read = (file) => (existsSync(file) && statSync(file).isFile() ? readFileSync(file) : null)

/** Makes the copy equal to the working tree. A file that has not changed keeps its time, so that little is rebuilt. */
export function copyTree() {
  mkdirSync(tree, { recursive: true })
  if (!existsSync(path.join(tree, '.git'))) git(tree, 'init', '--quiet') // tests ask git what the files are
  const wanted = files(root, '--cached', '--others', '--exclude-standard').filter((name) => read(path.join(root, name)))
  const keep = new Set(wanted)
  for (const name of files(tree, '--cached')) if (!keep.has(name)) rmSync(path.join(tree, name), { force: true })
  for (const name of wanted) {
    const [from, to] = [path.join(root, name), path.join(tree, name)]
    if (!read(to)?.equals(read(from))) cpSync(from, to)
  }
  git(tree, 'add', '--all')
  mkdirSync(path.join(tree, 'build'), { recursive: true })
  for (const shared of ['node_modules', 'build/parity-venv']) {
    const [from, to] = [path.join(root, shared), path.join(tree, shared)]
    if (existsSync(from) && !existsSync(to)) symlinkSync(from, to)
  }
}

export const hashOf = (...parts) =>
  parts
    .reduce((hash, part) => hash.update(part).update('\0'), createHash('sha256'))
    .digest('hex')
    .slice(0, 16)
