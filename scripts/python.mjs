import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

/**
 * The Python of a virtual environment in build/ with the packages of scripts/prebuilds-requirements.txt, which it
 * installs if they are not those of the file.
 */
export function prebuildsPython() {
  const requirements = path.join(root, 'scripts/prebuilds-requirements.txt')
  const folder = path.join(root, 'build/prebuilds-venv')
  const installed = path.join(folder, 'requirements.txt')
  const python = path.join(folder, 'bin/python')
  const wanted = readFileSync(requirements, 'utf8')
  if (!existsSync(installed) || readFileSync(installed, 'utf8') !== wanted) {
    mkdirSync(folder, { recursive: true })
    execFileSync('python3', ['-m', 'venv', '--clear', folder], { stdio: 'inherit' })
    const pip = ['-m', 'pip', 'install', '--quiet', '--require-hashes', '-r', requirements]
    execFileSync(python, pip, { stdio: 'inherit' })
    writeFileSync(installed, wanted)
  }
  return python
}

/** The folder of the Zig compiler in it. */
export function zigFolder() {
  const find = 'import os, ziglang; print(os.path.dirname(ziglang.__file__))'
  return execFileSync(prebuildsPython(), ['-c', find], { encoding: 'utf8' }).trim()
}
