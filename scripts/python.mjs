import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

/**
 * The Python of a virtual environment in build/ with the packages of a file in scripts/, which it installs if they are not
 * those of the file.
 */
export function pythonWith(file, environment) {
  const requirements = path.join(root, 'scripts', file)
  const folder = path.join(root, 'build', environment)
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

export const prebuildsPython = () => pythonWith('prebuilds-requirements.txt', 'prebuilds-venv')

/** Unpacks wheels of a platform, such as 'musllinux_1_2_x86_64', into a folder; `requirements` may have hashes. */
export function unpackWheels(folder, platform, requirements) {
  const python = prebuildsPython() // whose pip is there, unlike that of Debian's Python
  mkdirSync(folder, { recursive: true })
  const list = path.join(folder, 'requirements.txt') // pip takes no hash as an argument
  writeFileSync(list, `${requirements.join('\n')}\n`)
  const from = ['--no-deps', '--only-binary=:all:', '--platform', platform, '--dest', folder, '-r', list]
  execFileSync(python, ['-m', 'pip', 'download', '--quiet', ...from], { stdio: 'inherit' })
  for (const name of readdirSync(folder).filter((entry) => entry.endsWith('.whl')))
    execFileSync(python, ['-m', 'zipfile', '-e', path.join(folder, name), folder], { stdio: 'inherit' })
}

/** The folder of the Zig compiler in it. */
export function zigFolder() {
  const find = 'import os, ziglang; print(os.path.dirname(ziglang.__file__))'
  return execFileSync(prebuildsPython(), ['-c', find], { encoding: 'utf8' }).trim()
}
