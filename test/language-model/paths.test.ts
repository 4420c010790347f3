import { closeSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { CharacterTokenizer, LanguageModel, loadLanguageModel, saveLanguageModel } from '../../language-model/index.js'
import {
  AdamW,
  Linear,
  loadCheckpoint,
  loadSafetensors,
  loadSafetensorsSync,
  type Module,
  SummaryWriter,
  saveCheckpoint,
  saveSafetensors,
  saveSafetensorsSync,
  scope,
} from '../../lib/index.js'

// What differs between the disks of systems: how long a path may be (260 characters on Windows, unless it is given in a
// long form), which characters a name may have, whether case counts, and what a rename does to a file that is open.

const folder = mkdtempSync(join(tmpdir(), 'st-moe-paths-'))
afterAll(() => rmSync(folder, { recursive: true }))

const valuesOf = (model: Module) => Object.values(model.stateDict()).map((t) => [...t.dataSync()])
const temporaries = (path: string) => readdirSync(path).filter((name) => name.endsWith('.tmp'))

test.each([
  ['spaces', ' a b  c'],
  ['letters beyond ASCII', 'é漢字😀 e\u0301'],
  ['signs', "100%41 #1 & 'quoted' (x)+[y]{z}"],
  ['400 characters', join(...Array.from({ length: 8 }, (_, i) => `${i}`.repeat(50)))],
])('files are written, replaced and read in a folder with %s', async (_, name) => {
  const below = join(folder, name)
  const file = join(below, `${name.slice(0, 50).trim()}.safetensors`)
  mkdirSync(below, { recursive: true })
  using model = new Linear(3, 2)
  using other = new Linear(3, 2)
  using optimizer = new AdamW(model.parameters())
  saveSafetensorsSync(file, other.stateDict())
  await saveSafetensors(file, model.stateDict())
  scope(() => other.loadStateDict(loadSafetensorsSync(file).tensors))
  expect(valuesOf(other)).toEqual(valuesOf(model))
  expect(Object.keys((await loadSafetensors(file)).tensors)).toEqual(['bias', 'weight'])

  scope(() => model.weight.copyFrom(model.weight.detach().mul(2)))
  for (const step of [1, 2]) await saveCheckpoint(file, { model, optimizer, step })
  expect(await loadCheckpoint(file, { model: other })).toEqual({ step: 2 })
  expect(valuesOf(other)).toEqual(valuesOf(model))

  using writer = new SummaryWriter(join(below, 'runs'))
  writer.addScalar('loss', 1, 0)
  expect(readFileSync(writer.path).length).toBeGreaterThan(0)
  expect(temporaries(below)).toEqual([])
})

test('a folder of a model may have a long name, and CR LF at the ends of the lines of run.json', async () => {
  const path = join(folder, 'é'.repeat(60), 'b'.repeat(100), 'c'.repeat(100))
  const tokenizer = new CharacterTokenizer([...'abc'])
  using model = new LanguageModel({ tokenizer, context: 8, dim: 16, layers: 1, heads: 2, experts: 2 })
  await saveLanguageModel(path, model)
  const file = join(path, 'run.json')
  const text = readFileSync(file, 'utf8')
  writeFileSync(file, JSON.stringify(JSON.parse(text), null, 2).replaceAll('\n', '\r\n'))
  using loaded = await loadLanguageModel(path)
  expect(valuesOf(loaded)).toEqual(valuesOf(model))
})

test('a name in other case is the same file where the disk says so, and else another', async () => {
  const below = join(folder, 'case')
  mkdirSync(below)
  using first = new Linear(3, 2)
  using second = new Linear(3, 2)
  const [small, large] = ['a.safetensors', 'A.safetensors'].map((name) => join(below, name))
  await saveSafetensors(small, first.stateDict())
  await saveSafetensors(large, second.stateDict())
  const files = readdirSync(below)
  using loaded = new Linear(3, 2)
  scope(() => loaded.loadStateDict(loadSafetensorsSync(small).tensors))
  expect([files.length, valuesOf(loaded)]).toEqual(files.length === 1 ? [1, valuesOf(second)] : [2, valuesOf(first)])
})

test('a file that somebody reads for a moment is replaced; for longer, on Windows, it is intact', async () => {
  const file = join(folder, 'open.safetensors')
  using model = new Linear(3, 2)
  using other = new Linear(3, 2)
  const valuesIn = (): number[][] => {
    using loaded = new Linear(3, 2)
    scope(() => loaded.loadStateDict(loadSafetensorsSync(file).tensors))
    return valuesOf(loaded)
  }
  saveSafetensorsSync(file, other.stateDict())
  const reader = openSync(file, 'r')
  let saved = true
  try {
    saveSafetensorsSync(file, model.stateDict())
  } catch (error) {
    expect(error).toMatchObject({
      code: 'FILE_SYSTEM',
      message: expect.stringMatching(/the file from before is intact$/),
    })
    saved = false
  }
  expect(saved || process.platform === 'win32').toBe(true)
  expect(valuesIn()).toEqual(valuesOf(saved ? model : other))
  setTimeout(closeSync, 100, reader)
  await saveSafetensors(file, model.stateDict())
  expect(valuesIn()).toEqual(valuesOf(model))
  expect(temporaries(folder)).toEqual([])
})
