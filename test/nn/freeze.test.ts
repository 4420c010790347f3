import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { CharacterTokenizer, LanguageModel } from '../../language-model/index.js'
import {
  AdamW,
  type ComputeDType,
  captureStep,
  type DType,
  Linear,
  loadSafetensorsSync,
  Module,
  MoE,
  MoeError,
  manualSeed,
  memory,
  ones,
  type Parameter,
  randn,
  SoftMoE,
  SparseMoEBlock,
  saveSafetensorsSync,
  scope,
  type Tensor,
  tensor,
  trainStepAsync,
  type WeightFormat,
} from '../../lib/index.js'
import { bitsOf, relativeError, values } from '../support/numbers.js'
import { own } from '../support/owned.js'
import { temporary } from '../support/temporary.js'

// What a module is whose parameters have ended their training, also in fewer bits.

const compact = ['bf16', 'f16', 'int8'] as const
const tokenizer = CharacterTokenizer.of('abc')
const tokens = () => tensor(Int32Array.of(0, 1, 2, 1, 0, 2, 2, 1), [2, 4])

type Case = [name: string, make: () => Module, run: (module: never) => [x: Tensor | null, y: Tensor]]

const fed = <M extends Module>(
  name: string,
  make: () => M,
  shape: number[],
  forward: (module: M, x: Tensor) => Tensor,
): Case => [
  name,
  make,
  (module: M) => {
    const x = randn(shape)
    x.requiresGrad = true
    return [x, forward(module, x)]
  },
]

const moe = { dim: 12, numExperts: 4 }
const cases: Case[] = [
  fed(
    'Linear',
    () => new Linear(12, 8),
    [5, 12],
    (layer, x) => layer.forward(x),
  ),
  fed(
    'MoE',
    () => new MoE(moe),
    [2, 9, 12],
    (layer, x) => layer.forward(x).outputs,
  ),
  fed(
    'a MoE of GELUs',
    () => new MoE({ ...moe, activation: 'gelu' }),
    [2, 9, 12],
    (layer, x) => layer.forward(x).outputs,
  ),
  fed(
    'SoftMoE',
    () => new SoftMoE({ ...moe, numSlots: 2 }),
    [2, 9, 12],
    (layer, x) => layer.forward(x),
  ),
  fed(
    'SparseMoEBlock',
    () => new SparseMoEBlock(new MoE(moe)),
    [2, 9, 12],
    (layer, x) => layer.forward(x).outputs,
  ),
  [
    'LanguageModel',
    () => new LanguageModel({ tokenizer, context: 8, dim: 12, layers: 1, heads: 2, experts: 3 }),
    (model: LanguageModel) => [null, model.forward(tokens()).logits],
  ],
]

/** Rounds what `freeze` of the same module would, in f32. */
function roundWeights(module: Module, like: Module): void {
  const formats = new Map([...like.namedParameters()].map(([name, { dtype }]) => [name, dtype]))
  for (const [name, parameter] of module.namedParameters())
    parameter.copyFrom(parameter.detach().to(formats.get(name)!).to('f32'))
}

describe.each(cases)('%s', (_, make, run) => {
  const made = (): Module => {
    manualSeed(7)
    return own(make()).eval()
  }
  const outcome = (module: Module): Tensor[] => {
    manualSeed(8)
    const [x, y] = run(module as never)
    if (x) y.square().sum().backward()
    return x ? [y, x.grad!] : [y]
  }

  test('is frozen: the same values, and no gradients but that of x', () =>
    scope(() => {
      const [module, trained] = [made(), made()]
      const parameters = module.parameters()
      for (const parameter of parameters) parameter.grad = ones(parameter.shape)
      expect(module.freeze()).toBe(module)
      const [got, truth] = [module, trained].map(outcome)
      expect(got.map(bitsOf)).toEqual(truth.map(bitsOf))
      for (const { grad, requiresGrad, dtype } of parameters)
        expect({ grad, requiresGrad, dtype }).toEqual({ grad: null, requiresGrad: false, dtype: 'f32' })
    }))

  test.each(compact)('frozen in %s it has the numbers of the rounded weights', (format) =>
    scope(() => {
      const [module, rounded] = [made().freeze(format), made()]
      roundWeights(rounded, module)
      const truth = outcome(rounded)
      for (const [i, got] of outcome(module).entries())
        expect(relativeError(values(got), values(truth[i]))).toBeLessThan(2e-5)
      const stored = module.parameters().filter(({ dtype }) => dtype === format)
      const most = Math.max(...module.parameters().map(({ size }) => size))
      expect(stored.length).toBeGreaterThan(0)
      expect(Math.max(...stored.map(({ size }) => size))).toBe(most)
      for (const parameter of module.parameters()) {
        expect(parameter.requiresGrad).toBe(false)
        expect([format, 'f32']).toContain(parameter.dtype)
        if (parameter.shape.length === 1) expect(parameter.dtype).toBe('f32')
      }
    }),
  )

  test('is stored in f32 again, and trains again', () =>
    scope(() => {
      const module = made().freeze('bf16').freeze('int8').freeze('f16').freeze('f32')
      for (const parameter of module.parameters()) {
        expect(parameter.dtype).toBe('f32')
        parameter.requiresGrad = true
      }
      const [, y] = run(module as never)
      y.square().sum().backward()
      expect(module.parameters().some(({ grad }) => grad !== null)).toBe(true)
    }))
})

test.each(['f32', 'bf16', 'f16'] as const)(
  "a frozen layer holds one copy of its weights, also after forwards with computeDtype '%s'",
  (computeDtype) => {
    for (const format of compact) holdsOneCopy(format, computeDtype)
  },
)

function holdsOneCopy(format: WeightFormat, computeDtype: ComputeDType): void {
  const sizes = { dim: 128, numExperts: 4, computeDtype }
  for (const [make, shape] of [
    [() => new MoE(sizes), [1, 300, 128]],
    [() => new SoftMoE({ ...sizes, numSlots: 3 }), [1, 300, 128]],
    [() => new Linear(512, 256, { computeDtype }), [300, 512]],
  ] as [() => Module & { forward(x: Tensor): unknown }, number[]][]) {
    const before = memory().bytes
    const layer = make().freeze(format)
    const bytesOf = { f32: 4, bf16: 2, f16: 2, int8: 1 + 2 / 32 } as Record<DType, number>
    const stored = layer.parameters().reduce((sum, { size, dtype }) => sum + size * bytesOf[dtype], 0)
    for (const rows of [1, 16, 300])
      for (let i = 0; i < 3; i++) scope(() => void layer.forward(randn([...shape.slice(0, -2), rows, shape.at(-1)!])))
    expect(memory().bytes - before).toBeLessThan(1.02 * stored)
    layer.dispose()
  }
}

test('what several modules share is stored in fewer bits only if it is a weight of each', () => {
  class Tied extends Module {
    readonly first = new Linear(4, 4)
    readonly second = new Linear(4, 4)
    readonly tied = [new Linear(4, 4)]
    readonly scale: Parameter

    constructor() {
      super()
      this.second.weight = this.first.weight
      this.scale = this.tied[0].weight // used here as well, for who knows what
    }
  }
  const { first, second, scale } = own(new Tied()).freeze('f16')
  expect([first.weight.dtype, second.weight.dtype, scale.dtype]).toEqual(['f16', 'f16', 'f32'])
})

test('an optimizer has nothing to do', () => {
  const layer = own(new Linear(4, 3)).freeze('bf16')
  using optimizer = new AdamW(layer.parameters())
  const before = layer.parameters().map(bitsOf)
  scope(() => layer.forward(randn([2, 4])))
  optimizer.step()
  optimizer.zeroGrad()
  expect(layer.parameters().map(bitsOf)).toEqual(before)
})

describe.each(compact)('a state in %s', (format) => {
  test('has the stored bits, in files too', () =>
    scope(() => {
      const layer = own(new Linear(6, 5)).freeze(format)
      const state = layer.stateDict()
      expect(state.weight.dtype).toBe(format)
      const file = join(temporary(), 'state.safetensors')
      saveSafetensorsSync(file, state)
      const { weight } = loadSafetensorsSync(file).tensors
      expect([weight.dtype, bitsOf(weight)]).toEqual([format, bitsOf(layer.weight)])
    }))

  test('is loaded in the format of the layer', () =>
    scope(() => {
      const [wide, stored, other] = [new Linear(6, 5), new Linear(6, 5), new Linear(6, 5)].map(own)
      stored.freeze(format).loadStateDict(wide.stateDict())
      expect(bitsOf(stored.weight)).toBe(bitsOf(wide.weight.detach().to(format)))
      other.loadStateDict(stored.stateDict())
      expect([other.weight.dtype, bitsOf(other.weight)]).toEqual(['f32', bitsOf(stored.weight.to('f32'))])
    }))
})

describe('an error that changes nothing', () => {
  const unchanged = (module: Module, code: string, act: () => unknown) => {
    const parameters = module.parameters()
    const before = parameters.map(({ dtype, requiresGrad }) => [dtype, requiresGrad])
    let error: unknown
    try {
      act()
    } catch (caught) {
      error = caught
    }
    expect(error).toBeInstanceOf(MoeError)
    expect((error as MoeError).code).toBe(code)
    expect(parameters.map(({ dtype, requiresGrad }) => [dtype, requiresGrad])).toEqual(before)
  }

  test('of another format', () => {
    const layer = own(new Linear(3, 2))
    for (const format of ['f64', 'i32', 'int9', '', null, 16, {}])
      unchanged(layer, 'DTYPE', () => layer.freeze(format as WeightFormat))
  })

  test('of a layer in f64, which may be frozen as it is', () => {
    class Mixed extends Module {
      readonly narrow = new Linear(3, 2)
      readonly wide = new Linear(3, 2, { dtype: 'f64' })
    }
    const module = own(new Mixed())
    unchanged(module, 'DTYPE', () => module.freeze('bf16'))
    expect(
      module
        .freeze()
        .parameters()
        .some(({ requiresGrad }) => requiresGrad),
    ).toBe(false)
  })

  test('of a disposed parameter', () => {
    const layer = own(new Linear(3, 2))
    layer.bias!.dispose()
    expect(() => layer.freeze('bf16')).toThrow(/\[Linear\.freeze\] bias has been disposed/)
    expect([layer.weight.dtype, layer.weight.requiresGrad]).toEqual(['f32', true])
  })

  test('in a captured step or an asynchronous call, and of a replay after it', async () => {
    const layer = own(new Linear(3, 2))
    using x = randn([1, 3])
    unchanged(layer, 'UNSUPPORTED', () => captureStep(() => layer.freeze('bf16')))
    await trainStepAsync(() => unchanged(layer, 'UNSUPPORTED', () => layer.freeze('bf16')))
    using step = captureStep(() => layer.forward(x))
    layer.freeze('bf16')
    expect(() => step.replay()).toThrow(/disposed|changed/)
  })
})
