import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './blocks.js'

const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
  name: string
  scripts: Record<string, string>
  bin?: Record<string, string>
}
const npmCommands = ['install', 'ci', 'ls', 'dedupe', 'rebuild', 'pack', 'test', 'publish', 'approve-scripts']
/** Programs whose arguments are not checked, except for files of this repository. */
const programs = [
  'node',
  'git',
  'apt-get',
  'python3',
  'pip',
  'cmake',
  'cd',
  'bash',
  'docker',
  'export',
  'ldd',
  'nsys',
  'ncu',
]
const folders = /^(bench|docs|examples|lib|native|scripts|test|\.ci)\//

function complaint(words: readonly string[]): string | null {
  const [program, first, second] = words
  const missing = words.find((word) => folders.test(word) && !existsSync(join(root, word)))
  if (missing) return `${missing} is not in this repository`
  if (program === 'npm') {
    if (first !== 'run') return npmCommands.includes(first) ? null : `npm ${first} is not a known command`
    return Object.hasOwn(manifest.scripts, second) ? null : `there is no npm script '${second}'`
  }
  if (program === 'npx') {
    const known = existsSync(join(root, 'node_modules/.bin', first)) || Object.hasOwn(manifest.bin ?? {}, first)
    return known ? null : `npx ${first}: no such program here`
  }
  return programs.includes(program) || folders.test(program) ? null : `${program} is not a known program`
}

/** What is wrong with the commands of a shell block: npm scripts, programs and files that do not exist. */
export function complaints(block: string): string[] {
  const commands = block
    .replaceAll('\\\n', ' ')
    .split(/\n|&&|\||;/)
    .map((line) => line.replace(/(^|\s)#.*$/, '').trim())
    .filter((line) => line !== '')
  return commands.flatMap((command) => {
    const words = command.split(/\s+/)
    while (/^[A-Z][A-Z0-9_]*=/.test(words[0] ?? '')) words.shift()
    const text = words.length > 0 ? complaint(words) : null
    return text === null ? [] : [`${command}: ${text}`]
  })
}
