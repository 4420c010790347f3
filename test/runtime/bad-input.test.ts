import { expect, test } from 'vitest'
import * as st from '../../lib/index.js'
import { MoE, ops, randn, scope, type Tensor, tensor, zeros } from '../../lib/index.js'
import { any, block, forwardWith, input, linear, moe, type Row, testErrors, withOptions } from '../support/bad-input.js'

// Tensors and calls that are wrong; bad-options.test.ts has the options.

const f64 = new MoE({ dim: 6, numExperts: 3, dtype: 'f64' })
const disposed = randn([2, 5, 6])
disposed.dispose()
const gone = new MoE({ dim: 6, numExperts: 3 })
gone.dispose()

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
  [
    'hidden size',
    () => moe.forward(randn([2, 5, 7])),
    'SHAPE',
    '[MoE.forward] x must be [batch, tokens, 6], got [2, 5, 7]',
  ],
  [
    'hidden size of a block',
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
  [
    'reshape of nothing to any number',
    () => zeros([0, 5]).reshape([0, -1]),
    'SHAPE',
    '[reshape] -1 could be any number beside a dimension of 0, got [0, -1]',
  ],
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
    /expert 0 must return a tensor \[2, 4, 6\], got \[2, 4, 3\]/,
  ],
]

class Wrong extends st.Module {
  forward(x: Tensor) {
    return x.slice(2, 0, 3)
  }
}

class Wide extends st.Module {
  forward(x: Tensor) {
    return x.to('f64')
  }
}

const rowsOfType: Row[] = [
  [
    'the result of an expert',
    () => new MoE({ dim: 6, experts: [new Wide(), new Wide()] }).forward(input),
    'DTYPE',
    '[MoE.forward] the result of expert 0 must be f32, got f64',
  ],
  [
    'an f64 input',
    () => moe.forward(randn([2, 5, 6], { dtype: 'f64' })),
    'DTYPE',
    '[MoE.forward] x must be f32, got f64',
  ],
  ['an f32 input', () => f64.forward(input), 'DTYPE', '[MoE.forward] x must be f64, got f32'],
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

const noAxes = 'x has no axes, because its shape is []: axis must be absent'

const rowsOfUse: Row[] = [
  ...[0, 7, -1].map(
    (index): Row => [
      `x[${index}] = 3`,
      () => Object.assign(randn([4]), { [index]: 3 }),
      'UNSUPPORTED',
      `[Tensor] x[${index}] = … sets no element of a tensor: x.copyFrom(values) sets all of them, and where() and concat() make`,
    ],
  ),
  ['an axis of a single number', () => randn([]).sum(0), 'OPTION', `[sum] ${noAxes}, got 0`],
  ['axes of a single number', () => randn([]).mean([-1]), 'OPTION', `[mean] ${noAxes}, got -1`],
  ['argmax of a single number', () => randn([]).argmax(0), 'OPTION', `[argmax] ${noAxes}, got 0`],
  ['squeeze of a single number', () => randn([]).squeeze(0), 'OPTION', `[squeeze] ${noAxes}, got 0`],
  [
    'a result of a tensor',
    () => new st.MoEResult(any(input), any(undefined)),
    'OPTION',
    '[MoEResult] route must be a routing with its losses, as of ops.route, got undefined',
  ],
  ['a result of two', () => new st.MoEResult(any(input), any(input)), 'OPTION', /route must be .*, got Tensor/],
  [
    'a result without losses',
    () => new st.MoEResult(any(input), any({})),
    'OPTION',
    '[MoEResult] balanceLoss must be a Tensor, got undefined',
  ],
  [
    'a result of numbers',
    () => moe.forward(input).withOutputs(any(5)),
    'OPTION',
    '[MoEResult] outputs must be a Tensor, got 5',
  ],
  [
    'a hook of no tensor',
    () => st.Tensor.prototype.registerHook.call(any(null), (grad) => grad),
    'OPTION',
    '[Tensor.registerHook] this must be a Tensor, got null',
  ],
  [
    'backward of a constant',
    () => randn([]).backward(),
    'UNSUPPORTED',
    /does not depend on any tensor with requiresGrad/,
  ],
  ['backward twice', () => twice(), 'UNSUPPORTED', /has been freed by an earlier backward/],
  ['backward after a step', () => changed(), 'UNSUPPORTED', /has been changed in place/],
  [
    'no process group',
    withOptions({ processGroup: {} }),
    'OPTION',
    /processGroup must be a process group of initProcessGroup, got/,
  ],
  ['lengths without a group', withOptions({ allowVarSeqLen: true }), 'OPTION', /allowVarSeqLen needs processGroup/],
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
testErrors({
  shapes: rowsOfShape,
  dtypes: rowsOfType,
  devices: rowsOfDevice,
  'disposed tensors': rowsOfDisposal,
  use: rowsOfUse,
})

test('CUDA without a backend says what is missing', (context) => {
  const { available, stage, reason } = st.devices().find(({ device }) => device.startsWith('cuda'))!
  if (available) context.skip('CUDA is available')
  expect(() => zeros([1], { device: 'cuda' })).toThrow(expect.objectContaining({ code: 'BACKEND_UNAVAILABLE' }))
  expect(() => zeros([1], { device: 'cuda' })).toThrow(reason)
  expect(stage).toMatch(/^(plugin|abi|driver|device|cublas)$/)
})
