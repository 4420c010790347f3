import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import {
  getDefaultDevice,
  Linear,
  loadSafetensorsSync,
  loadTransformersMoE,
  MoE,
  type StateDict,
  saveSafetensorsSync,
  saveTransformersMoE,
  scope,
  tensor,
} from '../../lib/index.js'
import { Draw, relativeError, values } from '../support/numbers.js'
import { drawModel, families, type Model, type Tensors } from '../support/transformers-reference.js'

const folder = mkdtempSync(join(tmpdir(), 'st-moe-transformers-'))
afterAll(() => rmSync(folder, { recursive: true }))
let count = 0

const sizes = { D: 12, H: 7, E: 6, K: 3 }

const stateOf = (tensors: Tensors, dtype: 'f32' | 'bf16' = 'f32'): StateDict =>
  Object.fromEntries(
    Object.entries(tensors).map(([name, { shape, data }]) => [name, tensor(Float32Array.from(data), shape).to(dtype)]),
  )

/** Writes a model as transformers does: one file, or two with an index. */
function write({ config, tensors }: Pick<Model, 'config' | 'tensors'>, shards = 1, state = stateOf(tensors)): string {
  const path = join(folder, `model-${count++}`)
  mkdirSync(path)
  writeFileSync(join(path, 'config.json'), JSON.stringify(config))
  const other = { 'model.embed_tokens.weight': tensor(new Float32Array(6), [2, 3]) }
  if (shards === 1) saveSafetensorsSync(join(path, 'model.safetensors'), { ...state, ...other })
  else {
    const map: Record<string, string> = { 'model.norm.weight': 'model-9.safetensors' } // which is not there
    const files: StateDict[] = [{ ...other }, {}]
    for (const [i, [name, value]] of Object.entries(state).entries()) {
      files[i % 2][name] = value
      map[name] = `model-${i % 2}.safetensors`
    }
    for (const [i, content] of files.entries()) saveSafetensorsSync(join(path, `model-${i}.safetensors`), content)
    writeFileSync(join(path, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map: map }))
  }
  return path
}

function input(draw: Draw): number[][] {
  return Array.from({ length: 10 }, () => Array.from({ length: sizes.D }, () => Math.fround(draw.normal())))
}

test.each(Object.keys(families))('a layer of %s', (type) => {
  const draw = new Draw(type.length * 31)
  for (const [round, K] of [1, 2, 3].entries())
    scope(() => {
      const model = drawModel(draw, type, { ...sizes, K }, round)
      const x = input(draw)
      const moe = loadTransformersMoE(write(model, 1 + (round % 2)), { layer: round, dtype: 'f64' })
      moe.to(getDefaultDevice())
      expect(moe.training).toBe(false)
      const given = tensor(Float64Array.from(x.flat()), [2, 5, sizes.D])
      given.requiresGrad = true
      const { outputs, routing } = moe.forward(given)
      expect(routing.kept.to('f32').sum().item()).toBe(10 * K)
      expect(relativeError(values(outputs), model.block(x).flat())).toBeLessThan(1e-12)
      const objective = (token: number, d: number, step: number) => {
        const moved = x.map((row, t) => row.map((value, i) => (t === token && i === d ? value + step : value)))
        return model.block([moved[token]])[0].reduce((sum, value) => sum + value * value, 0)
      }
      outputs.square().sum().backward()
      const h = 1e-5
      for (const [token, d] of [
        [0, 0],
        [7, 3],
      ]) {
        const wanted = (objective(token, d, h) - objective(token, d, -h)) / (2 * h)
        expect(values(given.grad!)[token * sizes.D + d]).toBeCloseTo(wanted, 5)
      }
      const halves = stateOf(model.tensors, 'bf16')
      for (const [name, { data }] of Object.entries(model.tensors)) data.set(values(halves[name].to('f32')))
      const single = loadTransformersMoE(write(model, 1, halves), { layer: round }).to(getDefaultDevice())
      expect(single.gate.toGates.weight.dtype).toBe('f32')
      const { outputs: rounded } = single.forward(given.to('f32').detach())
      expect(relativeError(values(rounded), model.block(x).flat())).toBeLessThan(1e-5)
    })
})

test.each(Object.keys(families))('a layer of %s that is written back', (type) => {
  for (const shards of [1, 2])
    scope(() => {
      const model = drawModel(new Draw(type.length), type, sizes, 3)
      const path = write(model, shards, stateOf(model.tensors, 'bf16'))
      const read = () =>
        readdirSync(path)
          .filter((name) => name.endsWith('.safetensors'))
          .map((name) => loadSafetensorsSync(join(path, name)).tensors)
          .map((file) => Object.entries(file).map(([name, t]) => [name, t.dtype, t.shape, Array.from(values(t))]))
      const before = read()
      const moe = loadTransformersMoE(path, { layer: 3, dtype: 'f64' })
      saveTransformersMoE(path, moe, { layer: 3 })
      expect(read()).toEqual(before)
      for (const parameter of moe.parameters()) parameter.copyFrom(parameter.mul(-0.5).detach())
      saveTransformersMoE(path, moe, { layer: 3 })
      expect(read()).not.toEqual(before)
      const [again, other] = [loadTransformersMoE(path, { layer: 3, dtype: 'f64' }), moe.stateDict()]
      for (const [name, tensor] of Object.entries(again.stateDict()))
        expect(values(tensor)).toEqual(values(other[name]))
    })
})

test('a file keeps its metadata when a layer is written back', () => {
  const model = drawModel(new Draw(2), 'mixtral', sizes, 0)
  const path = write(model)
  const file = join(path, 'model.safetensors')
  const { tensors } = loadSafetensorsSync(file)
  saveSafetensorsSync(file, tensors, { metadata: { format: 'pt' } })
  saveTransformersMoE(path, loadTransformersMoE(path, { layer: 0 }), { layer: 0 })
  expect(loadSafetensorsSync(file).metadata).toEqual({ format: 'pt' })
})

test('a layer that is another than that of the model is not written', () => {
  const model = drawModel(new Draw(2), 'qwen2_moe', sizes, 0)
  const path = write(model)
  const before = readFileSync(join(path, 'model.safetensors'))
  const call = (moe: MoE, options: object = { layer: 0 }, to = path) => {
    try {
      saveTransformersMoE(to, moe, options as { layer: number })
      return 'no error'
    } catch (error) {
      return `${(error as { code?: string }).code} ${(error as Error).message}`
    }
  }
  const swiglu = (expertHiddenDim: number) => new MoE({ dim: 12, numExperts: 6, expertHiddenDim, activation: 'swiglu' })
  expect(call(swiglu(5))).toContain('model.layers.0.mlp.experts.0.down_proj.weight must be [12, 7], got [12, 5]')
  expect(call(swiglu(7))).toContain('model.layers.0.mlp.shared_expert_gate.weight must be [1, 12], got none')
  const experts = Array.from({ length: 6 }, () => new Linear(12, 12))
  expect(call(new MoE({ dim: 12, experts }))).toMatch(/^STATE_DICT .*gate_proj.weight must be \[7, 12\], got none/s)
  const loaded = loadTransformersMoE(path, { layer: 0 })
  expect(call(loaded, { layer: 1 })).toMatch(/^STATE_DICT /)
  expect(call({} as MoE)).toMatch(/^OPTION \[saveTransformersMoE\] moe must be a MoE, got /)
  expect(call(loaded, {})).toMatch(/^OPTION .*layer must be an integer/)
  expect(readFileSync(join(path, 'model.safetensors'))).toEqual(before)
  const ofObjects = ['constructor', 'toString', '__proto__'].map((name) => [name, tensor([1])])
  const steps = tensor(Int32Array.of(7, 0))
  const integers = write(model, 1, { ...stateOf(model.tensors), steps, ...Object.fromEntries(ofObjects) })
  expect(call(loaded, { layer: 0 }, integers)).toBe('no error')
  const file = join(integers, 'model.safetensors')
  const written = loadSafetensorsSync(file).tensors
  expect(values(written.steps)).toEqual(Int32Array.of(7, 0))
  expect(Object.keys(written)).toEqual(expect.arrayContaining(['constructor', 'toString', '__proto__']))
  const bytes = readFileSync(file, 'latin1').replace('"I32","shape":[2]', '"I64","shape":[1]')
  writeFileSync(file, bytes, 'latin1')
  expect(call(loaded, { layer: 0 }, integers)).toMatch(
    /^UNSUPPORTED .*holds integers \(steps, I64\) that would become I32/,
  )
})

test('mxfp4 weights of gpt_oss', () => {
  const draw = new Draw(5)
  const own = { D: 64, H: 32, E: 3, K: 2 }
  const model = drawModel(draw, 'gpt_oss', own, 0)
  const state = stateOf(model.tensors)
  for (const name of ['gate_up_proj', 'down_proj']) {
    const full = `model.layers.0.mlp.experts.${name}`
    const [E, columns, rows] = model.tensors[full].shape
    const blocks = Uint8Array.from({ length: (E * columns * rows) / 2 }, () => draw.integer(0, 255))
    const scales = Uint8Array.from({ length: blocks.length / 16 }, () => draw.integer(122, 126))
    const fp4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    const value = (half: number, i: number) => (half & 8 ? -1 : 1) * fp4[half & 7] * 2 ** (scales[i >> 4] - 127)
    const data = new Float64Array(E * columns * rows)
    for (const [i, byte] of blocks.entries())
      for (const [half, bits] of [byte & 15, byte >> 4].entries()) {
        const [at, e] = [(2 * i + half) % (columns * rows), Math.floor((2 * i + half) / (columns * rows))]
        const [row, column] = [Math.floor(at / columns), at % columns]
        data[(e * columns + column) * rows + row] = value(bits, i)
      }
    model.tensors[full].data = data
    delete state[full]
    state[`${full}_blocks`] = tensor(Int32Array.from(blocks), [E, rows, columns / 32, 16])
    state[`${full}_scales`] = tensor(Int32Array.from(scales), [E, rows, columns / 32])
  }
  const path = write(model, 1, state)
  const moe = loadTransformersMoE(path, { layer: 0, dtype: 'f64' }).to(getDefaultDevice())
  expect(() => saveTransformersMoE(path, moe, { layer: 0 })).toThrow('holds mxfp4 weights, which cannot be written')
  const x = Array.from({ length: 5 }, () => Array.from({ length: 64 }, () => Math.fround(draw.normal())))
  const { outputs } = moe.forward(tensor(Float64Array.from(x.flat()), [1, 5, 64]))
  expect(relativeError(values(outputs), model.block(x).flat())).toBeLessThan(1e-12)
})

test('what does not fit is an error that lists all of it', () => {
  const model = drawModel(new Draw(3), 'mixtral', sizes, 4)
  const path = write(model)
  const at = 'model.layers.4.block_sparse_moe.'
  const call = (from: string, options: object = { layer: 4 }) => {
    try {
      loadTransformersMoE(from, options as { layer: number })
      return 'no error'
    } catch (error) {
      return `${(error as { code?: string }).code} ${(error as Error).message}`
    }
  }
  expect(call(path, { layer: 3 })).toMatch(/^STATE_DICT .*layer 3 of .* has no experts: layer 4 has experts$/)
  const tensors = { ...model.tensors }
  delete tensors[`${at}experts.2.w3.weight`]
  tensors[`${at}gate.weight`] = { shape: [5, 12], data: new Float64Array(60) }
  const message = call(write({ config: model.config, tensors }))
  expect(message).toContain('missing: model.layers.4.block_sparse_moe.experts.2.w3.weight')
  expect(message).toContain('model.layers.4.block_sparse_moe.gate.weight must be [6, 12], got [5, 12]')
  const withConfig = (change: object) => call(write({ ...model, config: { ...model.config, ...change } }))
  expect(withConfig({ model_type: 'bert' })).toMatch(/^UNSUPPORTED .*model_type must be one of mixtral, .*, got "bert"/)
  expect(withConfig({ model_type: undefined })).toMatch(/^UNSUPPORTED .*model_type must be one of .*, got ""/)
  expect(withConfig({ hidden_act: 'gelu' })).toMatch(/^UNSUPPORTED .*hidden_act must be "silu", got "gelu"/)
  expect(withConfig({ hidden_size: '12' })).toMatch(
    /^FILE_FORMAT .*hidden_size must be an integer from 1 to 262144, got "12"/,
  )
  expect(withConfig({ num_local_experts: 1e15 })).toMatch(
    /^FILE_FORMAT .*must be an integer from 1 to 262144, got 1000000000000000/,
  )
  expect(withConfig({ num_local_experts: undefined })).toMatch(/^FILE_FORMAT .*num_local_experts or num_experts or/)
  expect(withConfig({ num_experts_per_tok: 7 })).toMatch(/^OPTION .*gatingTopN must be at most numExperts = 6, got 7/)
  expect(call(join(folder, 'nowhere'))).toMatch(/^FILE_SYSTEM .*config\.json/)
  expect(call(path, { layer: -1 })).toMatch(/^OPTION \[loadTransformersMoE\] layer must be an integer/)
  expect(call(path, { layer: 4, layers: 1 })).toMatch(/^OPTION .*unknown option "layers"/)
  expect(call(7 as never)).toMatch(/^OPTION .*path must be a file name, got 7/)
  for (const [text, wanted] of [
    ['{', /^FILE_FORMAT .*must hold JSON/],
    ['null', /^FILE_FORMAT .*must hold an object/],
  ] as const) {
    const broken = write(model)
    writeFileSync(join(broken, 'config.json'), text)
    expect(call(broken)).toMatch(wanted)
  }
  for (const [index, wanted] of [
    ['[', /^FILE_FORMAT .*must hold JSON/],
    ['{"weight_map": 3}', /^FILE_FORMAT .*weight_map must be an object/],
    [`{"weight_map": {"${at}gate.weight": "../model.safetensors"}}`, /^FILE_FORMAT .*must be a name without a folder/],
    [`{"weight_map": {"${at}gate.weight": "gone.safetensors"}}`, /^FILE_SYSTEM .*gone\.safetensors/],
  ] as const) {
    const broken = write(model)
    writeFileSync(join(broken, 'model.safetensors.index.json'), index)
    expect(call(broken)).toMatch(wanted)
  }
})

// On Windows there is no file behind such a link.
test.skipIf(process.platform === 'win32')('an index that is a link to itself is an error', () => {
  const path = write(drawModel(new Draw(3), 'mixtral', sizes, 4))
  symlinkSync('model.safetensors.index.json', join(path, 'model.safetensors.index.json'))
  expect(() => loadTransformersMoE(path, { layer: 4 })).toThrow(/cannot read .*model\.safetensors\.index\.json: ELOOP/)
})
