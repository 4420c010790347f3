import {
  Attention,
  CausalSelfAttention,
  Dropout,
  Embedding,
  ExpertChoiceGating,
  FeedForward,
  gelu,
  LayerNorm,
  Linear,
  Module,
  MoE,
  type MoEOptions,
  manualSeed,
  RMSNorm,
  Sequential,
  SoftMoE,
  type SoftMoEOptions,
  SparseMoEBlock,
  type Tensor,
  TopNGating,
  tensor,
} from '../../lib/index.js'
import type { Kind } from './draw-problem.js'
import { forwardOptions, layerOf } from './from-problem.js'
import type { Float } from './golden-case.js'
import { type Leaves, moduleSubject, type Subject } from './gradcheck.js'
import { drawn, gentle, input, sizes } from './moe-rows.js'
import { draw, leaf, type Row } from './op-rows.js'
import type { Problem } from './reference.js'

/** A GEGLU expert made of other ops, as a user would write one. */
class UserExpert extends Module {
  inner: Linear
  outer: Linear

  constructor(dim: number, hidden: number, dtype: Float) {
    super()
    this.inner = new Linear(dim, 2 * hidden, { dtype })
    this.outer = new Linear(hidden, dim, { dtype })
  }

  forward(x: Tensor): Tensor {
    const a = this.inner.forward(x)
    const hidden = a.shape[2] / 2
    return this.outer.forward(
      a
        .slice(2, hidden)
        .gelu()
        .mul(a.slice(2, 0, hidden)),
    )
  }
}

/** The problem's own layer; straight-through off, since its gradient is not that of the value. */
function moeSubject(kind: Kind, change: Partial<Problem> = {}): Subject {
  const problem = drawn(kind, { straightThrough: false, ...change })
  const { problem: p } = problem
  const make = (dtype: Float) => layerOf(problem, dtype)
  return moduleSubject(`${kind} ${sizes(p)}`, make, { x: input(p) }, (moe, { x }, dtype) => {
    const { outputs, totalAuxLoss, balanceLoss, routerZLoss, routing } = moe.forward(x, forwardOptions(p, dtype))
    return p.training
      ? [outputs, totalAuxLoss, balanceLoss, routerZLoss, routing.expertIndex, routing.position]
      : [outputs, routing.expertIndex, routing.position]
  })
}

function userExpertsSubject(): Subject {
  const { problem: p, capacityFactor } = drawn('plain')
  const make = (dtype: Float) =>
    new MoE({
      dtype,
      dim: p.D,
      gatingTopN: p.K,
      experts: Array.from({ length: p.E }, () => new UserExpert(p.D, p.H, dtype)),
      thresholdTrain: 0,
      capacityFactorTrain: capacityFactor,
      straightThroughDispatchTensor: false,
    })
  const router = (state: Leaves) => state['gate.to_gates.weight'].data.set(p.router)
  const run = (moe: MoE, { x }: Record<string, Tensor>) => {
    const { outputs, totalAuxLoss, routing } = moe.forward(x)
    return [outputs, totalAuxLoss, routing.expertIndex, routing.position]
  }
  return moduleSubject(sizes(p), make, { x: input(p) }, run, router)
}

function blockSubject(addFfBefore: boolean, addFfAfter: boolean): Subject {
  const shape = [2, 7, 6]
  const make = (dtype: Float) => {
    manualSeed(5)
    const options = { dtype, dim: shape[2], numExperts: 3, thresholdTrain: 0, straightThroughDispatchTensor: false }
    return new SparseMoEBlock(new MoE(options), { addFfBefore, addFfAfter })
  }
  return moduleSubject(`before ${addFfBefore} after ${addFfAfter}`, make, { x: leaf(shape) }, (block, { x }) => {
    const { outputs, totalAuxLoss, routing } = block.forward(x)
    return [outputs, totalAuxLoss, routing.expertIndex, routing.position]
  })
}

function routerSubject(options: (p: Problem) => Partial<MoEOptions>): Subject {
  const { problem: p } = drawn('plain')
  const straight = { straightThroughDispatchTensor: false }
  const make = (dtype: Float) => new MoE({ dtype, dim: p.D, numExperts: p.E, ...straight, ...options(p) })
  const router = (state: Leaves) => state['gate.to_gates.weight'].data.set(options(p).router ? gentle(p) : p.router)
  const run = (moe: MoE, { x }: Record<string, Tensor>) => {
    const { outputs, totalAuxLoss, routing } = moe.forward(x)
    return [outputs, totalAuxLoss, routing.expertIndex, routing.kept]
  }
  return moduleSubject(JSON.stringify(options(p)), make, { x: input(p) }, run, router)
}

function expertChoiceGatingSubject(): Subject {
  const { problem: p } = drawn('plain')
  const make = (dtype: Float) => new ExpertChoiceGating({ dtype, dim: p.D, numGates: p.E })
  const router = (state: Leaves) => state['to_gates.weight'].data.set(gentle(p))
  const run = (gating: ExpertChoiceGating, { x }: Record<string, Tensor>) => {
    const { weight, balanceLoss, routerZLoss, kept } = gating.forward(x)
    return [weight, balanceLoss, routerZLoss, kept]
  }
  return moduleSubject(sizes(p), make, { x: input(p) }, run, router)
}

function gatingSubject(): Subject {
  const { problem: p } = drawn('plain')
  const make = (dtype: Float) => new TopNGating({ dtype, dim: p.D, numGates: p.E, topN: p.K, thresholdTrain: 0 })
  const router = (state: Leaves) => state['to_gates.weight'].data.set(p.router)
  const run = (gating: TopNGating, { x }: Record<string, Tensor>) => {
    const { weight, balanceLoss, routerZLoss, expertIndex, position } = gating.forward(x)
    return [weight, balanceLoss, routerZLoss, expertIndex, position]
  }
  return moduleSubject(sizes(p), make, { x: input(p) }, run, router)
}

/** A module that maps x to one tensor, on several shapes. */
const simple = (
  name: string,
  make: (dtype: Float) => Module & { forward(x: Tensor): Tensor },
  ...shapes: number[][]
): Row => ({
  name,
  modules: [name],
  subjects: () =>
    shapes.map((shape) => moduleSubject(`[${shape}]`, make, { x: leaf(shape) }, (module, { x }) => module.forward(x))),
})

/** With everything that a forward takes: padding, noise of injected numbers, and dropout. */
function softSubject(options: Partial<SoftMoEOptions>, shape: readonly number[], masked = false): Subject {
  const [B, N] = shape.length === 2 ? [shape[0], 1] : [shape[0], shape.length === 3 ? shape[1] : shape[2] * shape[3]]
  const make = (dtype: Float) => {
    manualSeed(5)
    return new SoftMoE({ dim: 6, numExperts: 3, numSlots: 2, expertMult: 2, ...options, dtype })
  }
  const uniforms = leaf([B, N, 3, 2], () => draw.between(0.05, 0.95))
  const padding = Array.from({ length: B * N }, (_, i) => Number(i % N === 0 || i % 3 !== 0))
  return moduleSubject(`${JSON.stringify(options)} [${shape}]`, make, { x: leaf(shape) }, (layer, { x }, dtype) => {
    manualSeed(3)
    const gumbelUniforms = tensor(uniforms.data, uniforms.shape, { dtype })
    const mask = tensor(padding, [B, N])
    return layer.forward(x, masked ? { mask, addNoise: true, noiseMult: 0.5, random: { gumbelUniforms } } : {})
  })
}

export const moduleRows: Row[] = [
  simple('Linear', (dtype) => new Linear(5, 3, { dtype }), [4, 5], [2, 3, 5]),
  simple('RMSNorm', (dtype) => new RMSNorm(5, { dtype }), [4, 5], [2, 3, 5]),
  simple('LayerNorm', (dtype) => new LayerNorm(5, { dtype }), [4, 5], [2, 3, 5]),
  simple('FeedForward', (dtype) => new FeedForward(6, { dtype }), [4, 6], [2, 3, 6]),
  simple(
    'CausalSelfAttention',
    (dtype) => new CausalSelfAttention(6, { dtype, heads: 2, bias: true }),
    [2, 5, 6],
    [1, 1, 6],
  ),
  {
    name: 'Attention',
    modules: ['Attention'],
    subjects: () => {
      const grouped = (causal: boolean) => (dtype: Float) =>
        new Attention(8, { dtype, heads: 2, kvHeads: 1, rotary: true, rotaryBase: 50, causal, bias: causal })
      const mask = tensor([1, 1, 0, 1, 0, 1, 1, 1, 0, 1], [2, 5])
      return [true, false].map((causal) =>
        moduleSubject(`causal ${causal}`, grouped(causal), { x: leaf([2, 5, 8]) }, (module, { x }) =>
          module.forward(x, { mask }),
        ),
      )
    },
  },
  simple(
    'Sequential',
    (dtype) => new Sequential(new Linear(5, 4, { dtype }), gelu, new Linear(4, 3, { dtype })),
    [4, 5],
    [2, 3, 5],
  ),
  {
    name: 'Dropout',
    modules: ['Dropout'],
    subjects: () => [
      moduleSubject(
        '[4, 9]',
        () => new Dropout(0.3),
        { x: leaf([4, 9]) },
        (dropout, { x }) => {
          manualSeed(3)
          return dropout.forward(x)
        },
      ),
    ],
  },
  {
    name: 'Embedding',
    modules: ['Embedding'],
    subjects: () => [
      moduleSubject(
        '[2, 3]',
        (dtype) => new Embedding(5, 4, { dtype }),
        {},
        (embedding) => embedding.forward(tensor(Int32Array.of(0, 3, 3, 1, 4, 3), [2, 3])),
      ),
    ],
  },
  {
    name: 'ExpertChoiceGating',
    modules: ['ExpertChoiceGating'],
    subjects: () => [expertChoiceGatingSubject()],
  },
  { name: 'TopNGating', modules: ['TopNGating'], subjects: () => [gatingSubject()] },
  {
    name: 'MoE',
    modules: ['MoE'],
    subjects: () => [
      ...(['plain', 'empty experts', 'short', 'every expert', 'masked', 'noisy', 'soft', 'switch'] as const).map(
        (kind) => moeSubject(kind),
      ),
      moeSubject('plain', { training: false }),
      userExpertsSubject(),
      routerSubject(({ K }) => ({ dropless: true, gatingTopN: K, thresholdTrain: 0 })),
      routerSubject(({ D }) => ({ thresholdTrain: 0, expertBiases: false, expertHiddenDim: 3, outputDim: D + 1 })),
      routerSubject(() => ({ thresholdTrain: 0, expertBiases: 'linear', activation: 'swiglu', swigluLimit: 1.5 })),
      routerSubject(() => ({ thresholdTrain: 0, sharedExperts: 2, sharedExpertGate: true, expertHiddenDim: 3 })),
      routerSubject(() => ({ router: 'expertChoice' })),
      routerSubject(() => ({ router: 'expertChoice', expertChoiceOver: 'experts' })),
    ],
  },
  {
    name: 'SoftMoE',
    modules: ['SoftMoE'],
    subjects: () => [
      softSubject({}, [2, 7, 6]),
      softSubject({ geglu: true, useLayerNorm: true }, [2, 7, 6], true),
      softSubject({ dropout: 0.3 }, [2, 3, 6], true),
      softSubject({ dropout: 0.3, geglu: true }, [2, 6]),
      softSubject({}, [2, 6, 2, 3], true),
    ],
  },
  {
    name: 'SparseMoEBlock',
    modules: ['SparseMoEBlock'],
    subjects: () => [
      blockSubject(true, true),
      blockSubject(false, true),
      blockSubject(true, false),
      blockSubject(false, false),
    ],
  },
]
