import { describe, expect, test } from 'vitest'
import * as st from '../lib/index.js'
import {
  MoE,
  MoeError,
  type MoeErrorCode,
  ops,
  randn,
  SparseMoEBlock,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../lib/index.js'
import { settled } from './support/faults.js'

// What a program may get wrong, the code of the error, and what its text says: operation, argument, expected, got.

type Row = [what: string, run: () => unknown, code: MoeErrorCode, text: string | RegExp]

const moe = new MoE({ dim: 6, numExperts: 3 })
const wide = new MoE({ dim: 6, numExperts: 3, dtype: 'f64' })
const block = new SparseMoEBlock(new MoE({ dim: 6, numExperts: 3 }))
const linear = new st.Linear(6, 4)
const input = randn([2, 5, 6])
const disposed = randn([2, 5, 6])
disposed.dispose()
const gone = new MoE({ dim: 6, numExperts: 3 })
gone.dispose()

// biome-ignore lint/suspicious/noExplicitAny: wrong on purpose
const any = (value: unknown): any => value
const withOptions = (options: object) => () => new MoE(any({ dim: 6, numExperts: 3, ...options }))
const forwardWith = (options: object) => () => moe.forward(input, any(options))

const rowsOfShape: Row[] = [
  ...Object.entries({ zeros, ones: st.ones, rand: st.rand, randn }).map(
    ([name, make]): Row => [
      `${name} of numbers`,
      () => any(make)(2, 3),
      'SHAPE',
      `[${name}] shape must be an array, for example ${name}([2, 3]), got 2`,
    ],
  ),
  [
    'full of numbers',
    () => any(st.full)(2, 3, 1),
    'SHAPE',
    /shape must be an array, for example full\(\[2, 3\], …\), got 2/,
  ],
  ['uniform of numbers', () => any(st.uniform)(2, 3), 'SHAPE', /for example uniform\(\[2, 3\], …\), got 2/],
  ['arange of a shape', () => st.arange(any([2, 3])), 'OPTION', '[arange] end must be a finite number, got [2, 3]'],
  [
    'a shape that is a number',
    () => tensor([1, 2], any(2)),
    'SHAPE',
    /\[tensor\] shape must be an array, for example \[2, 3\]/,
  ],
  [
    'reshape to numbers',
    () => any(input).reshape(10, 6),
    'SHAPE',
    '[reshape] shape must be an array, for example [2, 3], got 10',
  ],
  [
    'reshape with two -1',
    () => input.reshape([-1, -1]),
    'SHAPE',
    '[reshape] only one dimension may be -1, got [-1, -1]',
  ],
  [
    'reshape to what does not divide',
    () => input.reshape([-1, 7]),
    'SHAPE',
    '[reshape] [2, 5, 6] has 60 elements, which [-1, 7] does not divide',
  ],
  ['rank 2', () => moe.forward(randn([5, 6])), 'SHAPE', '[MoE.forward] x must be [batch, tokens, 6], got [5, 6]'],
  [
    'rank 4',
    () => moe.forward(randn([1, 2, 5, 6])),
    'SHAPE',
    '[MoE.forward] x must be [batch, tokens, 6], got [1, 2, 5, 6]',
  ],
  ['rank 0', () => moe.forward(tensor(1, [])), 'SHAPE', '[MoE.forward] x must be [batch, tokens, 6], got []'],
  ['width', () => moe.forward(randn([2, 5, 7])), 'SHAPE', '[MoE.forward] x must be [batch, tokens, 6], got [2, 5, 7]'],
  [
    'width of a block',
    () => block.forward(randn([2, 5, 7])),
    'SHAPE',
    '[SparseMoEBlock.forward] x must be [batch, tokens, 6]',
  ],
  [
    'uniforms',
    forwardWith({ random: { uniforms: zeros([2, 5, 2]) } }),
    'SHAPE',
    /\[route\] uniforms must be \[2, 2, 5\], got \[2, 5, 2\]/,
  ],
  [
    'gumbelUniforms',
    forwardWith({ random: { gumbelUniforms: zeros([3]) } }),
    'SHAPE',
    /gumbelUniforms must be \[2, 5, 3\], got \[3\]/,
  ],
  ['mask', forwardWith({ mask: zeros([2, 6]) }), 'SHAPE', /mask must be \[2, 5\], got \[2, 6\]/],
  ['linear', () => linear.forward(randn([3, 5])), 'SHAPE', '[linear] x must be [..., 6] for weight [4, 6], got [3, 5]'],
  [
    'matmul',
    () => randn([2, 3]).matmul(randn([2, 3])),
    'SHAPE',
    /\[matmul\] the inner dimensions must agree, got \[2, 3\] and \[2, 3\]/,
  ],
  ['matmul of a batch', () => randn([2, 2, 3]).matmul(randn([3, 3, 2])), 'SHAPE', /leading dimensions must agree/],
  ['broadcast', () => randn([2, 3]).add(randn([2])), 'SHAPE', '[add] shapes [2, 3] and [2] do not broadcast'],
  ['reshape', () => randn([2, 3]).reshape([4]), 'SHAPE', '[reshape] [2, 3] has 6 elements, [4] needs 4'],
  ['data and shape', () => tensor([1, 2, 3], [2]), 'SHAPE', '[tensor] shape [2] needs 2 values, data has 3'],
  ['ragged data', () => tensor([[1, 2], [3]]), 'SHAPE', /regular array/],
  ['negative dimension', () => zeros([-1]), 'SHAPE', /shape must hold non-negative integers/],
  ['item', () => randn([2]).item(), 'SHAPE', /needs one element/],
  [
    'backward',
    () => tensor([1, 2], [2], { requiresGrad: true }).mul(2).backward(),
    'SHAPE',
    /needs a gradient of the same shape/,
  ],
  ['concat', () => ops.concat([randn([2, 3]), randn([2, 4])], 0), 'SHAPE', /tensors\[1\]/],
  ['layerNorm', () => new st.LayerNorm(4).forward(randn([2, 5])), 'SHAPE', /x must be \[\.\.\., 4\]/],
  ['crossEntropy', () => ops.crossEntropy(randn([4, 3]), tensor(new Int32Array(3))), 'SHAPE', /targets must be \[4\]/],
  [
    'expert',
    () => new MoE({ dim: 6, experts: [new Wrong(), new Wrong()] }).forward(input),
    'SHAPE',
    /expert 0 must give a tensor \[2, 4, 6\], got \[2, 4, 3\]/,
  ],
]

class Wrong extends st.Module {
  forward(x: Tensor) {
    return x.slice(2, 0, 3)
  }
}

const rowsOfType: Row[] = [
  [
    'an f64 input',
    () => moe.forward(randn([2, 5, 6], { dtype: 'f64' })),
    'DTYPE',
    '[MoE.forward] x must be f32, got f64',
  ],
  ['an f32 input', () => wide.forward(input), 'DTYPE', '[MoE.forward] x must be f64, got f32'],
  [
    'an i32 input',
    () => moe.forward(tensor(new Int32Array(60), [2, 5, 6])),
    'DTYPE',
    '[MoE.forward] x must be f32, got i32',
  ],
  ['a bf16 input', () => moe.forward(input.to('bf16')), 'DTYPE', '[MoE.forward] x must be f32, got bf16'],
  [
    'arithmetic in bf16',
    () => input.to('bf16').mul(2),
    'DTYPE',
    "[mul] a must be f32, f64 or i32, got bf16; convert it with .to('f32')",
  ],
  [
    'a view of shared memory',
    () => tensor(any(new Float32Array(new SharedArrayBuffer(16)))),
    'OPTION',
    '[tensor] data must not be a view of a SharedArrayBuffer; copy it first',
  ],
  ['mixed', () => randn([2]).add(randn([2], { dtype: 'f64' })), 'DTYPE', '[add] b must be f32'],
  [
    'gradient of integers',
    () => tensor(new Int32Array(2), [2], { requiresGrad: true }),
    'DTYPE',
    /only f32 and f64 tensors have gradients/,
  ],
  ['a layer in f16', withOptions({ dtype: 'f16' }), 'DTYPE', /dtype must be one of f32, f64, got "f16"/],
  [
    'an unknown dtype',
    () => zeros([1], any({ dtype: 'float32' })),
    'DTYPE',
    /dtype must be one of f32, f64, bf16, f16, i32, got "float32"/,
  ],
  ['a Uint16Array without dtype', () => tensor(new Uint16Array(2)), 'DTYPE', /pass dtype 'bf16' or 'f16'/],
  ['a BigInt64Array', () => tensor(any(new BigInt64Array(2))), 'DTYPE', /got BigInt64Array/],
  ['indices', () => new st.Embedding(4, 2).forward(randn([2])), 'DTYPE', '[embedding] index must be i32, got f32'],
  [
    'a step handle',
    () => moe.forwardWithGrad(any(new Float64Array(60)), [2, 5, 6]),
    'DTYPE',
    /input must be a Float32Array, got Float64Array/,
  ],
]

const rowsOfDevice: Row[] = [
  [
    'no such device',
    () => zeros([1], any({ device: 'gpu' })),
    'DEVICE',
    /device must be 'cpu', 'cuda' or 'cuda:<number>', got "gpu"/,
  ],
  ['no such device of a layer', withOptions({ device: 'tpu:0' }), 'DEVICE', /got "tpu:0"/],
  ['a number', withOptions({ device: 0 }), 'DEVICE', /got 0/],
  ['a move', () => input.to(any('gpu')), 'DTYPE', /got "gpu"/],
  ['a move of a layer', () => moe.to(any('gpu')), 'DEVICE', /\[MoE\.to\]/],
]

const rowsOfDisposal: Row[] = [
  ['an input', () => moe.forward(disposed), 'DISPOSED', '[MoE.forward] x has been disposed'],
  ['an input of a block', () => block.forward(disposed), 'DISPOSED', '[SparseMoEBlock.forward] x has been disposed'],
  ['an operand', () => randn([2, 5, 6]).mul(disposed), 'DISPOSED', '[mul] b has been disposed'],
  ['values', () => disposed.dataSync(), 'DISPOSED', '[Tensor.dataSync] this has been disposed'],
  ['a mask', forwardWith({ mask: disposed }), 'DISPOSED', /mask has been disposed/],
  ['a layer', () => gone.forward(input), 'DISPOSED', /has been disposed/],
  ['what left its scope', () => leaked().item(), 'DISPOSED', /disposed/],
]

/** A tensor that its scope has freed. */
function leaked(): Tensor {
  let escaped: Tensor | undefined
  scope(() => {
    escaped = tensor([1])
  })
  return escaped!
}

const rowsOfOptions: Row[] = [
  [
    'one expert',
    () => new MoE({ dim: 6, numExperts: 1 }),
    'OPTION',
    '[MoE] gatingTopN must be at most numExperts = 1, got 2 (the default)',
  ],
  [
    'one gate',
    () => new st.TopNGating({ dim: 6, numGates: 2, topN: 4 }),
    'OPTION',
    '[TopNGating] topN must be at most numGates = 2, got 4',
  ],
  ['no options', () => new MoE(any(undefined)), 'OPTION', '[MoE] dim must be an integer of at least 1, got undefined'],
  ['K above E', withOptions({ gatingTopN: 4 }), 'OPTION', '[MoE] gatingTopN must be at most numExperts = 3, got 4'],
  ['K of 0', withOptions({ gatingTopN: 0 }), 'OPTION', /gatingTopN must be an integer of at least 1, got 0/],
  ['half a K', withOptions({ gatingTopN: 1.5 }), 'OPTION', /got 1\.5/],
  [
    'topN of route',
    () => ops.route(input, randn([3, 6]), { topN: 4 }),
    'OPTION',
    '[route] topN must be an integer from 1 to 3, got 4',
  ],
  ['k of topk', () => ops.topk(randn([2, 3]), 4), 'OPTION', '[topk] k must be an integer from 1 to 3, got 4'],
  ['no experts', withOptions({ numExperts: 0 }), 'OPTION', /numExperts must be an integer of at least 1, got 0/],
  ['a negative width', withOptions({ dim: -6 }), 'OPTION', /dim must be an integer of at least 1, got -6/],
  ['a width in quotes', withOptions({ dim: '6' }), 'OPTION', /dim must be an integer of at least 1, got "6"/],
  ['no hidden width', withOptions({ expertHiddenMult: 0.1 }), 'OPTION', /hidden width/],
  ...[
    'thresholdTrain',
    'thresholdEval',
    'capacityFactorTrain',
    'capacityFactorEval',
    'balanceLossCoef',
    'routerZLossCoef',
    'noiseMult',
    'eps',
    'expertHiddenMult',
  ].flatMap((name): Row[] =>
    [Number.NaN, Infinity, -Infinity].map((value) => [
      `${name} ${value}`,
      withOptions({ [name]: value }),
      'OPTION',
      new RegExp(`^\\[MoE\\] ${name} must be a finite number.*, got ${value}$`),
    ]),
  ),
  [
    'a NaN among the thresholds',
    withOptions({ gatingTopN: 3, thresholdTrain: [0.1, Number.NaN] }),
    'OPTION',
    /thresholdTrain\[1\] must be a finite number, got NaN/,
  ],
  [
    'too many thresholds',
    withOptions({ gatingTopN: 3, thresholdTrain: [0.1, 0.2, 0.3] }),
    'OPTION',
    '[MoE] thresholdTrain must be a number or 2 numbers (one for each choice after the first), got [0.1, 0.2, 0.3]',
  ],
  [
    'too few thresholds',
    withOptions({ gatingTopN: 3, thresholdEval: [0.1] }),
    'OPTION',
    /thresholdEval must be a number or 2 numbers/,
  ],
  [
    'noiseMult in forward',
    forwardWith({ noiseGates: true, noiseMult: Number.NaN }),
    'OPTION',
    /noiseMult must be a finite number, got NaN/,
  ],
  ['noiseGates that is a number', withOptions({ noiseGates: 1 }), 'OPTION', /noiseGates must be true or false, got 1/],
  [
    'balanceDensity',
    withOptions({ balanceDensity: 'all' }),
    'OPTION',
    /balanceDensity must be one of 'kept', 'assigned', got "all"/,
  ],
  [
    'computeDtype',
    withOptions({ computeDtype: 'i32' }),
    'OPTION',
    /computeDtype must be one of 'f32', 'bf16', 'f16' with dtype 'f32'/,
  ],
  [
    'computeDtype with f64',
    withOptions({ dtype: 'f64', computeDtype: 'bf16' }),
    'OPTION',
    /computeDtype must be one of 'f64' with dtype 'f64', got "bf16"/,
  ],
  [
    'too few experts',
    () => new MoE({ dim: 6, numExperts: 3, experts: [linear] }),
    'OPTION',
    /experts must hold numExperts = 3 modules, got 1/,
  ],
  [
    'experts that are no modules',
    () => new MoE({ dim: 6, experts: any([{}, {}]) }),
    'OPTION',
    /experts\[0\] must be a Module/,
  ],
  [
    'a block of a Linear',
    () => new SparseMoEBlock(any(linear)),
    'OPTION',
    '[SparseMoEBlock] moe must be a MoE, got Linear',
  ],
  ['an input that is an array', () => moe.forward(any([[1]])), 'OPTION', /\[MoE\.forward\] x must be a Tensor, got \[/],
  ['no input', () => moe.forward(any(undefined)), 'OPTION', /x must be a Tensor, got undefined/],
  ['p of dropout', () => new st.Dropout(1), 'OPTION', '[Dropout] p must be below 1, got 1'],
  [
    'heads',
    () => new st.CausalSelfAttention(6, { heads: 4 }),
    'OPTION',
    /dim must be a multiple of heads, got 6 and 4/,
  ],
  ['a target outside', () => ops.crossEntropy(randn([1, 3]), tensor(Int32Array.of(3))), 'OPTION', /3/],
  ['an index outside', () => ops.embedding(randn([4, 2]), tensor(Int32Array.of(-1))), 'OPTION', /-1/],
  ['group sizes', () => ops.groupedGemm(randn([3, 2]), randn([2, 2, 2]), tensor(Int32Array.of(1, 1))), 'SHAPE', /3/],
  [
    'lr',
    () => new st.AdamW(moe.parameters(), { lr: Number.NaN }),
    'OPTION',
    '[AdamW] lr must be a finite number from 0 to Infinity, got NaN',
  ],
  ['betas', () => new st.AdamW(moe.parameters(), { betas: [0.9, 1] }), 'OPTION', /betas\[1\] must be below 1, got 1/],
  ['parameters', () => new st.SGD(any([randn([2])])), 'OPTION', /parameter 0 must be a Parameter, got Tensor/],
  ['a seed', () => st.manualSeed(-1), 'OPTION', /seed must be an integer of at least 0, got -1/],
  ['a seed that is not whole', () => new st.Generator(0.5), 'OPTION', /got 0\.5/],
  ['threads', () => st.setNumThreads(0), 'OPTION', /threads must be an integer from 1 to 256, got 0/],
  ['clipGradNorm', () => st.clipGradNorm(moe.parameters(), Number.NaN), 'OPTION', /maxNorm must be a finite number/],
  ['arange', () => st.arange(0, 5, 0), 'OPTION', /step must not be 0/],
  ['new Tensor', () => new st.Tensor(1), 'OPTION', /made by tensor\(\), zeros\(\)/],
]

const rowsOfNames: Row[] = [
  [
    'a typing error',
    withOptions({ numExpert: 3 }),
    'OPTION',
    /unknown option "numExpert"; did you mean 'numExperts'\?/,
  ],
  [
    'snake case',
    withOptions({ gating_top_n: 2 }),
    'OPTION',
    /unknown option "gating_top_n"; did you mean 'gatingTopN'\?/,
  ],
  ['capitals', withOptions({ ThresholdTrain: 0.1 }), 'OPTION', /did you mean 'thresholdTrain'\?/],
  [
    'nothing near',
    withOptions({ zebra: 1 }),
    'OPTION',
    /unknown option "zebra"\. Known: router, expertChoiceOver, dropless, dim, capacityFactorTrain/,
  ],
  [
    'forward',
    forwardWith({ masks: zeros([2, 5]) }),
    'OPTION',
    /\[MoE\.forward\] unknown option "masks"; did you mean 'mask'\?/,
  ],
  [
    'random',
    forwardWith({ random: { uniform: zeros([2, 2, 5]) } }),
    'OPTION',
    /unknown option "uniform"; did you mean 'uniforms'\?/,
  ],
  [
    'a block',
    () => new SparseMoEBlock(new MoE({ dim: 6 }), any({ addFFAfter: false })),
    'OPTION',
    /did you mean 'addFfAfter'\?/,
  ],
  [
    'an optimizer',
    () => new st.AdamW(moe.parameters(), any({ weight_decay: 0 })),
    'OPTION',
    /did you mean 'weightDecay'\?/,
  ],
  [
    'a clipping',
    () => st.clipGradNorm(moe.parameters(), 1, any({ onNonfinite: 'throw' })),
    'OPTION',
    /did you mean 'onNonFinite'\?/,
  ],
  ['a tensor', () => zeros([1], any({ type: 'f32' })), 'OPTION', /did you mean 'dtype'\?/],
  ['options that are a number', () => new MoE(any(6)), 'OPTION', '[MoE] options must be an object, got 6'],
  ['options that are a list', forwardWith([]), 'OPTION', /options must be an object, got \[\]/],
]

const rowsOfUse: Row[] = [
  [
    'backward of a constant',
    () => randn([]).backward(),
    'UNSUPPORTED',
    /does not depend on any tensor with requiresGrad/,
  ],
  ['backward twice', () => twice(), 'UNSUPPORTED', /has been freed by an earlier backward/],
  ['backward after a step', () => changed(), 'UNSUPPORTED', /has been changed in place/],
  ['expert parallelism', withOptions({ processGroup: {} }), 'UNSUPPORTED', /not available in this version/],
  [
    'a NaN',
    () => strict.forward(tensor(new Float32Array(60).fill(Number.NaN), [2, 5, 6])),
    'NON_FINITE',
    /x must be finite, got a NaN or an infinity/,
  ],
]

const strict = new MoE({ dim: 6, numExperts: 3, onNonFinite: 'throw' })

function twice(): void {
  const loss = tensor([2], [1], { requiresGrad: true }).square().sum()
  loss.backward()
  loss.backward()
}

function changed(): void {
  const parameter = new st.Parameter(tensor([2, 3]))
  const loss = parameter.square().sum()
  parameter.grad = tensor([1, 1])
  new st.SGD([parameter], { lr: 1 }).step()
  loss.backward()
}

const groups: [string, Row[]][] = [
  ['shapes', rowsOfShape],
  ['types', rowsOfType],
  ['devices', rowsOfDevice],
  ['disposed tensors', rowsOfDisposal],
  ['option values', rowsOfOptions],
  ['option names', rowsOfNames],
  ['use', rowsOfUse],
]

describe.each(groups)('%s', (_, rows) => {
  test.each(rows)('%s', (_what, run, code, text) => {
    let caught: unknown
    scope(() => {
      try {
        settled(run)
      } catch (error) {
        caught = error
      }
    })
    expect(caught).toBeInstanceOf(MoeError)
    const { code: actual, message, op } = caught as MoeError
    expect(message).toMatch(text)
    expect(actual).toBe(code)
    expect(message.startsWith(`[${op}] `)).toBe(true)
  })
})

test('after all that the layers still work', () => {
  expect(scope(() => moe.forward(input).outputs.shape)).toEqual([2, 5, 6])
  expect(scope(() => block.forward(input).outputs.shape)).toEqual([2, 5, 6])
})

test('CUDA without a backend says what is missing', (context) => {
  const { available, stage, reason } = st.devices().find(({ device }) => device.startsWith('cuda'))!
  if (available) context.skip('CUDA is available')
  expect(() => zeros([1], { device: 'cuda' })).toThrow(expect.objectContaining({ code: 'BACKEND_UNAVAILABLE' }))
  expect(() => zeros([1], { device: 'cuda' })).toThrow(reason)
  expect(stage).toMatch(/^(plugin|abi|driver|device|cublas)$/)
})
