// Functions, constructors and layers for out-of-memory.mjs. Each case makes what it works on and says how it is called,
// what of it must stay the same when the call fails, and how a result is compared and freed.
import * as st from '../../../dist/index.js'
import { bits, dictBits } from './bits.mjs'

const { MoE, noGrad, randn, scope, tensor } = st

/** A function that makes something to be disposed. */
const making = (make, show) => () => ({ run: make, bits: show, free: (made) => made.dispose() })
const module = (make) => making(make, (made) => scope(() => dictBits(made.stateDict())))
const values = (make) => making(make, bits)

/** A call of a layer on x, with what it makes freed by nobody else. */
export const layer = (make, call) => () => {
  const [module, input] = [make(), randn([2, 6, 8], { requiresGrad: true })]
  return {
    run: () => call(module, input),
    state: () => scope(() => dictBits(module.stateDict())),
    bits: (y) => bits(y.outputs ?? y),
    free: (y) => y.dispose(),
    dispose: () => {
      module.dispose()
      input.dispose()
    },
  }
}

/** An op and its backward, on tensors that it gets from `inputs`. */
const op = (inputs, fn) => () => {
  const leaves = inputs()
  const own = Array.isArray(leaves) ? leaves : Object.values(leaves)
  return {
    run: () =>
      scope(() => {
        const y = fn(leaves)
        y.mul(y).sum().backward()
        return y
      }),
    state: () => own.map((leaf) => `${bits(leaf)} ${bits(leaf.grad)}`).join(),
    bits,
    free: (y) => y.dispose(),
    samples: true,
    dispose: () => {
      for (const leaf of own) leaf.dispose()
    },
  }
}

export const plain = Float32Array.from({ length: 96 }, (_, i) => Math.sin(i))
const small = Uint8Array.from({ length: 80 }, (_, i) => i)
const floats =
  (...shapes) =>
  () =>
    shapes.map((shape) => randn(shape, { requiresGrad: true }))
const routing =
  (options) =>
  ([input, weight]) =>
    st.ops.route(input, weight, options)
const weights = (E, D, H) => floats([2, 6, D], [E, D], [E, 2 * H, D], [E, 2 * H], [E, H], [E, D, H], [E, D])
const fused = ([input, weight, w1, b1, multBias, w2, b2]) =>
  st.ops.expertFfn(input, st.ops.route(input, weight), { w1, b1, multBias, w2, b2 })

export const ops = {
  'add, mul, div with broadcasting': op(floats([3, 4], [4], [3, 1]), ([a, b, c]) => a.add(b).mul(c).div(b)),
  'sub of one tensor from itself': op(floats([3, 4]), ([a]) => a.sub(a.square())),
  matmul: op(floats([2, 3, 4], [4, 5]), ([a, b]) => a.matmul(b)),
  linear: op(floats([2, 3, 4], [5, 4], [5]), ([a, w, b]) => st.linear(a, w, b)),
  'concat, slice, transpose': op(floats([3, 4], [3, 2]), ([a, b]) => st.concat([a, b], 1).slice(1, 1, 5).transpose()),
  'sum, mean': op(floats([3, 4, 2]), ([a]) => a.sum(1).mean([0], true)),
  'max, min': op(floats([3, 4, 2]), ([a]) => a.max([0, 2]).add(a.min())),
  'gather, indexSelect': op(floats([3, 4]), ([a]) => {
    const index = tensor(Int32Array.of(2, 0, 1, 3), [2, 2])
    return a.gather(1, index).matmul(a.indexSelect(0, tensor(Int32Array.of(1, 1))))
  }),
  'losses of rows': op(floats([3, 4], [3, 4]), ([a, b]) => {
    const options = { labelSmoothing: 0.1, reduction: 'none' }
    const rows = st.crossEntropy(a, tensor(Int32Array.of(2, -100, 0)), options)
    return rows.mul(st.huberLoss(a, b)).add(st.binaryCrossEntropyWithLogits(a, b, { posWeight: 2 }))
  }),
  softmax: op(floats([3, 4]), ([a]) => a.softmax()),
  topk: op(floats([2, 3, 4]), ([a]) => st.ops.topk(a, 2).values),
  mseLoss: op(floats([3, 4], [3, 4]), ([a, b]) => st.mseLoss(a, b)),
  'norms, attention': op(floats([2, 6, 8], [8], [8]), ([a, w, b]) => {
    const y = st.rmsNorm(st.layerNorm(a, w, b), w)
    return st.ops.attention(y, y, y, { heads: 2 })
  }),
  'rotary, attention with a mask': op(floats([2, 3, 8], [2, 3, 4]), ([a, b]) => {
    const mask = tensor([1, 1, 0, 1, 1, 1], [2, 3])
    return st.ops.attention(st.ops.rotary(a, { heads: 2 }), b, b, { heads: 2, kvHeads: 1, mask })
  }),
  dropout: op(floats([40]), ([a]) => st.dropout(a, 0.5)),
  'route, dispatch, combine': op(floats([2, 6, 8], [3, 8]), (leaves) => {
    const routed = routing({ noiseGates: true })(leaves)
    return st.ops.combine(st.ops.dispatch(leaves[0], routed), routed).mul(routed.totalAuxLoss)
  }),
  'route, differentiable, with a mask': op(floats([2, 6, 8], [3, 8]), (leaves) => {
    const mask = tensor([Array(6).fill(1), [1, 1, 1, 0, 0, 0]])
    const uniforms = st.rand([2, 2, 6])
    return routing({ differentiableTopk: true, mask, uniforms, training: true })(leaves).weight
  }),
  expertFfn: op(weights(3, 8, 4), fused),
  'SoftMoE, forward and backward': op(floats([2, 6, 8]), ([input]) => {
    const module = new st.SoftMoE({ dim: 8, numExperts: 2, numSlots: 2, geglu: true })
    try {
      return module.forward(input, { mask: st.ones([2, 6]), addNoise: true })
    } finally {
      module.dispose()
    }
  }),
  'groupedGemm in bf16': op(floats([6, 8], [2, 3, 8]), ([a, w]) =>
    st.ops.groupedGemm(a, w, tensor(Int32Array.of(2, 4)), { computeDtype: 'bf16' }),
  ),
  'to f64 and back': op(floats([30]), ([a]) => a.to('f64').mul(2).to('f32')),
}

export const made = {
  tensor: values(() => tensor(plain)),
  'tensor of numbers': values(() => tensor([Array(40).fill(0.1)])),
  'tensor, converted': values(() => tensor(small, null, { dtype: 'f64' })),
  zeros: values(() => st.zeros([3, 4])),
  randn: values(() => randn([3, 4])),
  randperm: values(() => st.randperm(40)),
  arange: values(() => st.arange(40)),
  'new Linear': module(() => new st.Linear(4, 3)),
  'new Embedding': module(() => new st.Embedding(11, 8)),
  'new LayerNorm': module(() => new st.LayerNorm(8)),
  'new FeedForward': module(() => new st.FeedForward(8)),
  'new CausalSelfAttention': module(() => new st.CausalSelfAttention(8, { heads: 2, bias: true })),
  'new MoE': module(() => new MoE({ dim: 8, numExperts: 3 })),
  'new SoftMoE': module(() => new st.SoftMoE({ dim: 8, numSlots: 2, useLayerNorm: true })),
  'new MoE of own experts': () => {
    const experts = [new st.Linear(8, 8), new st.FeedForward(8)]
    return {
      ...module(() => new MoE({ dim: 8, experts }))(),
      dispose: () => {
        for (const expert of experts) expert.dispose()
      },
    }
  },
  'new SparseMoEBlock': () => {
    const moe = new MoE({ dim: 8, numExperts: 3 })
    return {
      ...module(() => new st.SparseMoEBlock(moe, { addFfBefore: true }))(),
      dispose: () => moe.dispose(),
    }
  },
}

export const layers = {
  'Linear.forward': layer(
    () => new st.Linear(8, 8),
    (module, input) => module.forward(input),
  ),
  'FeedForward.forward': layer(
    () => new st.FeedForward(8),
    (module, input) => module.forward(input),
  ),
  'CausalSelfAttention.forward': layer(
    () => new st.CausalSelfAttention(8, { heads: 2 }),
    (module, input) => module.forward(input),
  ),
  'Attention.forward in Sequential': layer(
    () => new st.Sequential(new st.Attention(8, { heads: 2, kvHeads: 1, rotary: true }), st.gelu),
    (module, input) => module.forward(input),
  ),
  'MoE.forward': layer(
    () => new MoE({ dim: 8, numExperts: 3, noiseGates: true }),
    (module, input) => module.forward(input, { stats: true }),
  ),
  'SoftMoE.forward': layer(
    () => new st.SoftMoE({ dim: 8, numExperts: 2, numSlots: 2, geglu: true, dropout: 0.1 }),
    (module, input) => module.forward(input, { addNoise: true }),
  ),
  'MoE.forward with own experts': layer(
    () => new MoE({ dim: 8, experts: [new st.Linear(8, 8), new st.FeedForward(8)] }),
    (module, input) => module.forward(input),
  ),
  'MoE.forward that packs its weights': () => {
    const world = layer(
      () => new MoE({ dim: 8, numExperts: 3, computeDtype: 'bf16' }),
      (module, input) => noGrad(() => module.forward(input)),
    )()
    world.run().dispose()
    return { ...world, copies: true }
  },
  'SparseMoEBlock.forward': layer(
    () => new st.SparseMoEBlock(new MoE({ dim: 8, numExperts: 3 }), { addFfBefore: true }),
    (module, input) => module.forward(input),
  ),
}
