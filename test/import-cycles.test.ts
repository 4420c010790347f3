import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'

const lib = fileURLToPath(new URL('../lib', import.meta.url))

/** The files that a file of lib loads. `import type` and `export type` load nothing (verbatimModuleSyntax). */
function loadedBy(file: string): string[] {
  const statements = readFileSync(file, 'utf8').matchAll(/^(?:import|export) (?!type )[^;'"]*?'(\.[^']+)\.js'/gm)
  return Array.from(statements, ([, path]) => join(file, '..', `${path}.ts`))
}

/** The first cycle that a walk in depth meets, as the files of it in order. */
function cycleOf(files: readonly string[], loads: (file: string) => readonly string[]): string[] {
  const done = new Set<string>()
  const visit = (file: string, path: readonly string[]): string[] => {
    if (path.includes(file)) return [...path.slice(path.indexOf(file)), file]
    if (done.has(file)) return []
    for (const next of loads(file)) {
      const cycle = visit(next, [...path, file])
      if (cycle.length > 0) return cycle
    }
    done.add(file)
    return []
  }
  return files.map((file) => visit(file, [])).find((cycle) => cycle.length > 0) ?? []
}

test('no files of lib load each other in a circle', () => {
  const files = readdirSync(lib, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => join(lib, name))
  expect(loadedBy(join(lib, 'ops/topk.ts'))).toContain(join(lib, 'tensor.ts'))
  expect(files.flatMap(loadedBy).filter((file) => !files.includes(file))).toEqual([])
  expect(cycleOf(files, loadedBy)).toEqual([])
})

test('the walk finds a circle', () => {
  const loads: Record<string, string[]> = { a: ['b', 'c'], b: [], c: ['d'], d: ['b', 'c'] }
  expect(cycleOf(Object.keys(loads), (file) => loads[file])).toEqual(['c', 'd', 'c'])
})
