import {
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { loadSafetensorsSync, loadTransformersMoE, type MoE, saveTransformersMoE, scope } from '../../lib/index.js'
import { Draw, values } from '../support/numbers.js'
import { writeModels } from '../support/transformers-folder.js'
import { drawModel } from '../support/transformers-reference.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-transformers-folder-'))
afterAll(() => rmSync(folder, { recursive: true }))
let count = 0

const sizes = { D: 4, H: 3, E: 6, K: 2 }

/** A folder of a model with experts in these layers. */
const write = (layers: readonly number[], type = 'olmoe'): string =>
  writeModels(
    join(folder, `model-${count++}`),
    layers.map((layer) => drawModel(new Draw(layer), type, sizes, layer)),
  )

const messageOf = (fn: () => unknown): string => {
  try {
    fn()
    return 'no error'
  } catch (error) {
    return `${(error as { code?: string }).code} ${(error as Error).message}`
  }
}

test.each<[layers: number[], text: string]>([
  [[1], 'layer 1 has experts'],
  [[0, 1], 'layers 0 to 1 have experts'],
  [[10, 1, 3, 5, 4, 11, 2], 'layers 1 to 5, 10 to 11 have experts'],
  [[0, 2, 3], 'layers 0, 2 to 3 have experts'],
  [
    Array.from({ length: 13 }, (_, i) => 2 * i),
    'layers 0, 2, 4, 6, 8, 10, 12, 14, 16, 18 and 3 more ranges have experts',
  ],
])('a layer without experts, where %j have some', (layers, text) => {
  const path = write(layers)
  const moe = loadTransformersMoE(path, { layer: layers[0] })
  for (const layer of [7, 99]) {
    const wanted = `${path} has no experts: ${text}`
    expect(messageOf(() => loadTransformersMoE(path, { layer }))).toBe(
      `STATE_DICT [loadTransformersMoE] layer ${layer} of ${wanted}`,
    )
    expect(messageOf(() => saveTransformersMoE(path, moe, { layer }))).toBe(
      `STATE_DICT [saveTransformersMoE] layer ${layer} of ${wanted}`,
    )
  }
})

test('layers of an index, and a dense layer of DeepSeek', () => {
  const path = write([1], 'deepseek_v3')
  const { tensors } = loadSafetensorsSync(join(path, 'model.safetensors'))
  const map = Object.fromEntries(Object.keys(tensors).map((name) => [name, 'model.safetensors']))
  for (const name of ['gate_proj', 'up_proj', 'down_proj'])
    map[`model.layers.0.mlp.${name}.weight`] = 'gone.safetensors'
  writeFileSync(join(path, 'model.safetensors.index.json'), JSON.stringify({ weight_map: map }))
  expect(messageOf(() => loadTransformersMoE(path, { layer: 0 }))).toMatch(/layer 0 of .*: layer 1 has experts$/)
  expect(loadTransformersMoE(path, { layer: 1 }).numExperts).toBe(6)
})

test('a model of which no layer has experts lists what is missing', () => {
  const path = write([1])
  writeFileSync(
    join(path, 'model.safetensors.index.json'),
    '{"weight_map":{"model.layers.0.mlp.up_proj.weight":"model.safetensors"}}',
  )
  expect(messageOf(() => loadTransformersMoE(path, { layer: 1 }))).toMatch(/missing: model.layers.1.mlp.gate.weight/)
})

// Windows lets only some users make links.
describe.skipIf(process.platform === 'win32')('links in a folder', () => {
  const file = 'model.safetensors'

  /** The parameters of a layer, changed. */
  function changed(path: string): MoE {
    const moe = loadTransformersMoE(path, { layer: 0 })
    for (const parameter of moe.parameters()) parameter.copyFrom(parameter.mul(-2).detach())
    return moe
  }

  /** Saves a changed layer, which can be loaded again. */
  const saved = (path: string) =>
    scope(() => {
      const moe = changed(path)
      saveTransformersMoE(path, moe, { layer: 0 })
      const [again, state] = [loadTransformersMoE(path, { layer: 0 }), moe.stateDict()]
      for (const [name, tensor] of Object.entries(again.stateDict()))
        expect(values(tensor)).toEqual(values(state[name]))
    })

  const cases: [name: string, link: (path: string, outside: string) => void][] = [
    ['to a blob, as in the cache of Hugging Face', (path) => symlinkSync('../blobs/blob', join(path, file))],
    ['to a blob by its whole path', (path, outside) => symlinkSync(outside, join(path, file))],
    [
      'over a link within the folder',
      (path, outside) => {
        mkdirSync(join(path, 'deep'))
        symlinkSync(outside, join(path, 'deep/next'))
        symlinkSync('deep/next', join(path, file))
      },
    ],
    [
      'through a folder that is a link',
      (path) => {
        symlinkSync('../blobs', join(path, '..blobs'))
        symlinkSync('..blobs/blob', join(path, file))
      },
    ],
    ['that is a second name of the file', (path, outside) => linkSync(outside, join(path, file))],
  ]
  test.each(cases)('%s: it becomes a file, and the file outside stays', (_, link) => {
    const path = write([0])
    const outside = join(folder, 'blobs/blob')
    mkdirSync(join(folder, 'blobs'), { recursive: true })
    renameSync(join(path, file), outside)
    const before = readFileSync(outside)
    link(path, outside)
    saved(path)
    expect(readFileSync(outside)).toEqual(before)
    expect(lstatSync(join(path, file)).isFile()).toBe(true)
    expect(readdirSync(join(folder, 'blobs'))).toEqual(['blob'])
    saved(path)
    expect(readFileSync(outside)).toEqual(before)
  })

  test('that stays within it stays, and its file is replaced; so does a link to the folder', () => {
    const path = write([0])
    renameSync(join(path, file), join(path, '..weights'))
    symlinkSync('..weights', join(path, file))
    const way = join(folder, `way-${count}`)
    symlinkSync(path, way)
    for (const [i, name] of [path, way].entries()) {
      const before = readFileSync(join(path, '..weights'))
      saved(name)
      expect({ i, to: readlinkSync(join(path, file)) }).toEqual({ i, to: '..weights' })
      expect(readFileSync(join(path, '..weights'))).not.toEqual(before)
    }
  })

  test('after a failed save nothing has changed', () => {
    const path = write([0])
    const outside = join(folder, `kept-${count}`)
    renameSync(join(path, file), outside)
    symlinkSync(outside, join(path, file))
    const before = readFileSync(outside)
    const moe = changed(path)
    writeFileSync(outside, before.subarray(0, -1))
    expect(messageOf(() => saveTransformersMoE(path, moe, { layer: 0 }))).toMatch(/^FILE_FORMAT /)
    expect(readlinkSync(join(path, file))).toBe(outside)
  })
})
