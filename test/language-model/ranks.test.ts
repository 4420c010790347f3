import { mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import {
  CharacterTokenizer,
  heldOutLoss,
  LanguageModel,
  loadLanguageModel,
  RunFolder,
  saveLanguageModel,
} from '../../language-model/index.js'
import {
  AdamW,
  checkpointHeaderSync,
  initProcessGroup,
  loadCheckpoint,
  type ProcessGroup,
  saveCheckpoint,
  tensor,
} from '../../lib/index.js'

/** Folders that ranks save, by a process alone. Those of several: test/distributed. */

const letters = CharacterTokenizer.of('to be or not')
const made = () => new LanguageModel({ tokenizer: letters, context: 8, dim: 16, layers: 1, heads: 2, experts: 4 })
let group: ProcessGroup
let root: string
let folder: string
beforeAll(() => {
  group = initProcessGroup()
  root = mkdtempSync(join(tmpdir(), 'st-moe-ranks-of-one-'))
})
afterAll(() => {
  group.destroy()
  rmSync(root, { recursive: true, force: true })
})
beforeEach(() => {
  folder = mkdtempSync(join(root, 'run-'))
})

/** The first value of a weight that each save has changed. */
const mark = (model: LanguageModel, value: number): LanguageModel => {
  model.norm.gamma.copyFrom(new Float32Array(16).fill(value))
  return model
}
const marked = async (): Promise<number> => (await loadLanguageModel(folder)).norm.gamma.dataSync()[0]
const files = () => readdirSync(folder).sort()

test('a save removes the checkpoint of the other kind', async () => {
  const model = made()
  const overwrite = true
  await saveLanguageModel(folder, mark(model, 1), { group })
  expect(files()).toEqual([
    expect.stringMatching(/^checkpoint-[0-9a-f]{8}-00001-of-00001\.safetensors$/),
    'checkpoint.safetensors.index.json',
    'run.json',
  ])
  expect(new RunFolder(folder).checkpoint).toBe(folder)
  expect(await marked()).toBe(1)
  await saveLanguageModel(folder, mark(model, 2), { overwrite })
  expect(files()).toEqual(['checkpoint.safetensors', 'run.json'])
  expect(new RunFolder(folder).checkpoint).toBe(join(folder, 'checkpoint.safetensors'))
  expect(await marked()).toBe(2)
  await saveLanguageModel(folder, mark(model, 3), { overwrite, group })
  expect(files()).not.toContain('checkpoint.safetensors')
  expect(await marked()).toBe(3)
  await expect(saveLanguageModel(folder, model, { group })).rejects.toThrow(/contains a model: overwrite: true/)
  await expect(saveLanguageModel(folder, model, { overwrite, group: 2 as never })).rejects.toMatchObject({
    code: 'OPTION',
  })
})

test('of both kinds, which a kill can leave, the newer one counts', async () => {
  const model = made()
  await saveLanguageModel(folder, mark(model, 1))
  const [file, aside] = ['checkpoint.safetensors', 'aside'].map((name) => join(folder, name))
  renameSync(file, aside)
  await saveLanguageModel(folder, mark(model, 2), { overwrite: true, group })
  renameSync(aside, file)
  utimesSync(file, 1, 1)
  expect(await marked()).toBe(2)
  utimesSync(file, 2e9, 2e9)
  expect(await marked()).toBe(1)
})

test('the header of a folder is that of its files', async () => {
  const model = made()
  await saveCheckpoint(folder, { model, step: 3, group }, { metadata: { text: 'a' } })
  const { tensors, metadata } = checkpointHeaderSync(folder)
  const state = Object.entries(model.stateDict()).map(([name, { shape, size }]) => [
    `model.${name}`,
    { dtype: 'F32', shape, bytes: 4 * size },
  ])
  expect(tensors).toEqual(Object.fromEntries(state))
  expect(metadata).toMatchObject({ text: 'a' })
  await saveCheckpoint(join(folder, 'one.safetensors'), { model, step: 3 })
  expect(checkpointHeaderSync(join(folder, 'one.safetensors')).tensors).toEqual(tensors)
})

test('an index that names a tensor that its file lacks is refused, and so is a file of another size', async () => {
  const model = made()
  await saveLanguageModel(folder, model, { group })
  const [file, index] = files().map((name) => join(folder, name))
  const text = readFileSync(index, 'utf8')
  for (const name of ['model.norm.wait', 'constructor']) {
    writeFileSync(index, text.replace('model.norm.gamma', name))
    await expect(loadLanguageModel(folder)).rejects.toMatchObject({
      code: 'FILE_FORMAT',
      message: expect.stringMatching(new RegExp(`has no "${name}"$`)),
    })
  }
  writeFileSync(index, text.replace(/,?\s*"model\.positions": "[^"]*"/, ''))
  await expect(loadLanguageModel(folder)).rejects.toMatchObject({ code: 'STATE_DICT' })
  writeFileSync(index, text)
  writeFileSync(file, readFileSync(file).subarray(0, -4))
  await expect(loadLanguageModel(folder)).rejects.toMatchObject({ code: 'FILE_FORMAT' })
})

test('what optimizers have is that of before, from both kinds', async () => {
  const model = made()
  const optimizer = new AdamW(model.parameters())
  const step = () => {
    model
      .forward(tensor(letters.encode('to be or'), [1, 8]))
      .logits.square()
      .mean()
      .backward()
    optimizer.step()
    optimizer.zeroGrad()
  }
  step()
  const file = join(folder, 'one.safetensors')
  await saveCheckpoint(folder, { model, optimizer, step: 5, group })
  await saveCheckpoint(file, { model, optimizer, step: 5 })
  const goOn = async (from: string) => {
    expect((await loadCheckpoint(from, { model, optimizer })).step).toBe(5)
    step()
    return model.head.weight.dataSync().slice()
  }
  expect(await goOn(folder)).toEqual(await goOn(file))
})

test('the loss on held-out text is that without a group', async () => {
  const model = made().eval()
  const text = letters.encode('to be or not to be or not '.repeat(9))
  const alone = await heldOutLoss(model, text, { batch: 5 })
  expect(await heldOutLoss(model, text, { batch: 5, group })).toBe(alone)
})

test('parameterCount is the number of all parameters', () => {
  const model = made()
  expect(model.parameterCount).toBe(model.parameters().reduce((sum, { size }) => sum + size, 0))
})
