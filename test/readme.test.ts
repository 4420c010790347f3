import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'

/** Every TypeScript block of the README and the docs compiles under `strict` and runs, as a reader would run it. */

const root = fileURLToPath(new URL('..', import.meta.url))
const folder = join(root, 'build', 'snippets')

const documents = [
  'README.md',
  ...readdirSync(join(root, 'docs')).flatMap((name) => (name.endsWith('.md') ? [`docs/${name}`] : [])),
]

function snippets(document: string): string[] {
  const text = readFileSync(join(root, document), 'utf8')
  return [...text.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, code]) => code)
}

const files = documents.flatMap((document) =>
  snippets(document).map((code, i) => ({
    name: `${document} block ${i + 1}`,
    file: join(folder, `${document.replaceAll(/\W/g, '-')}-${i + 1}.mts`),
    code,
  })),
)

rmSync(folder, { recursive: true, force: true })
mkdirSync(folder, { recursive: true })
for (const { file, code } of files) writeFileSync(file, `${code}\nexport {}\n`)

describe('code in the documentation', () => {
  afterAll(() => rmSync(folder, { recursive: true, force: true }))

  test('there is some', () => expect(files.length).toBeGreaterThan(5))

  test('compiles under strict', () => {
    const options = [
      '--noEmit',
      '--strict',
      '--skipLibCheck',
      '--module',
      'nodenext',
      '--target',
      'es2022',
      '--lib',
      'es2023,esnext.disposable',
      '--types',
      'node',
    ]
    const result = spawnSync(join(root, 'node_modules/.bin/tsc'), [...options, ...files.map(({ file }) => file)], {
      cwd: root,
      encoding: 'utf8',
    })
    expect(result.stdout).toBe('')
    expect(result.status).toBe(0)
  })

  test.each(files)('$name runs', ({ file }) => {
    const result = spawnSync(join(root, 'node_modules/.bin/tsx'), [file], {
      cwd: root,
      encoding: 'utf8',
      timeout: 60_000,
    })
    expect(result.stderr).toBe('')
    expect(result.status).toBe(0)
  })
})
