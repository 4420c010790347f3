import {
  CausalSelfAttention,
  Dropout,
  Embedding,
  ExpertChoiceGating,
  FeedForward,
  LayerNorm,
  Linear,
  Module,
  MoE,
  type MoEOptions,
  manualSeed,
  ops,
  RMSNorm,
  SparseMoEBlock,
  type Tensor,
  TopNGating,
  tensor,
} from '../../lib/index.js'
import { activations, isGated } from '../../lib/ops/activation.js'
import { type Drawn, drawProblem, type Kind } from './draw-problem.js'
import { forwardOptions, layerOf, toTensor } from './from-problem.js'
import type { Float } from './golden-case.js'
import { functionSubject, type Leaf, type Leaves, moduleSubject, type Subject } from './gradcheck.js'
import { draw, leaf, type Row } from './op-rows.js'
import type { Problem } from './reference.js'

// Problems whose routing has margins, so that no step of a central difference changes it.

function drawn(kind: Kind, change: Partial<Problem> = {}): Drawn {
  const result = drawProblem(draw, kind)
  Object.assign(result.problem, { balanceLossCoef: 0.8, routerZLossCoef: 0.3, training: true, ...change })
  return result
}

const input = (p: Problem): Leaf => ({ shape: [p.B, p.N, p.D], data: p.x })
const sizes = ({ B, N, D, E, K, H }: Problem): string => JSON.stringify({ B, N, D, E, K, H })

function weightsOf(p: Problem, gated = true): Leaves {
  const { D, E, H } = p
  const P = gated ? 2 * H : H
  return {
    w1: { shape: [E, P, D], data: p.w1.slice(0, E * P * D) },
    b1: { shape: [E, P], data: p.b1.slice(0, E * P) },
    ...(gated && { multBias: { shape: [E, H], data: p.multBias } }),
    w2: { shape: [E, D, H], data: p.w2 },
    b2: { shape: [E, D], data: p.b2 },
  }
}

/** A routing of the problem that depends on `x` and `router`. */
function routed(p: Problem, x: Tensor, router: Tensor, dtype: Float): ops.RouteResult {
  return ops.route(x, router, {
    ...forwardOptions(p, dtype).random,
    mask: forwardOptions(p, dtype).mask,
    topN: p.K,
    capacity: p.C,
    threshold: tensor(Float32Array.from(p.thresholds)),
    noiseGates: p.gumbel !== null,
    noiseMult: p.noiseMult,
    differentiableTopk: p.differentiableTopk,
    training: p.training,
    balanceLossCoef: p.balanceLossCoef,
    routerZLossCoef: p.routerZLossCoef,
    balanceDensity: p.assigned ? 'assigned' : 'kept',
    eps: p.eps,
  })
}

const routeKinds: readonly Kind[] = [
  'plain',
  'empty experts',
  'all to one',
  'short',
  'every expert',
  'masked',
  'noisy',
  'soft',
]

function routeSubject(kind: Kind): Subject {
  const { problem: p } = drawn(kind)
  const leaves = { x: input(p), router: { shape: [p.E, p.D], data: p.router } }
  return functionSubject(`${kind} ${sizes(p)}`, leaves, ({ x, router }, dtype) => {
    const { weight, balanceLoss, routerZLoss, totalAuxLoss, expertIndex, position } = routed(p, x, router, dtype)
    return [weight, balanceLoss, routerZLoss, totalAuxLoss, expertIndex, position]
  })
}

/** The router of a problem with scores that are not all but 1, so that their order among tokens has margins too. */
const gentle = (p: Problem) => p.router.map((weight) => weight / 8)

function expertChoiceSubject(kind: Kind, expertChoiceOver: 'tokens' | 'experts'): Subject {
  const { problem: p } = drawn(kind)
  const leaves = { x: input(p), router: { shape: [p.E, p.D], data: gentle(p) } }
  return functionSubject(`${kind} over ${expertChoiceOver} ${sizes(p)}`, leaves, ({ x, router }, dtype) => {
    const { mask } = forwardOptions(p, dtype)
    const made = ops.expertChoice(x, router, {
      mask,
      expertChoiceOver,
      capacity: Math.ceil(p.N / 2),
      balanceLossCoef: 0.8,
    })
    return [made.weight, made.balanceLoss, made.routerZLoss, made.totalAuxLoss, made.kept]
  })
}

/** dispatch, combine or expertFfn on the routing of a problem, with a weight that is a leaf of its own. */
function routingSubject(
  kind: Kind,
  more: (p: Problem) => Leaves,
  f: (routing: ops.Routing, inputs: Record<string, Tensor>) => Tensor,
): Subject {
  const { problem: p } = drawn(kind)
  const router = () => ({ shape: [p.E, p.D], data: p.router })
  const weight = leaf([p.B, p.N, p.K])
  return functionSubject(`${kind} ${sizes(p)}`, { weight, ...more(p) }, (inputs, dtype) => {
    const routing = routed(
      p,
      toTensor(p.x, [p.B, p.N, p.D], dtype),
      toTensor(router().data, router().shape, dtype),
      dtype,
    )
    return f({ ...routing, weight: inputs.weight }, inputs)
  })
}

const ffnWeights = (inputs: Record<string, Tensor>) => inputs as unknown as ops.ExpertWeights

const opRows: Row[] = [
  {
    name: 'topk',
    ops: ['topk'],
    subjects: () =>
      [
        [3, 5, 2],
        [1, 7, 7],
        [2, 4, 9, 1],
      ].map(([...dims]) => {
        const [k, shape] = [dims[dims.length - 1], dims.slice(0, -1)]
        const order = leaf(shape, () => draw.integer(-1000, 1000) / 64)
        return functionSubject(JSON.stringify(dims), { x: order }, ({ x }) => {
          const { values, indices } = ops.topk(x, k)
          return [values, indices]
        })
      }),
  },
  { name: 'route', ops: ['route'], subjects: () => routeKinds.map(routeSubject) },
  {
    name: 'expertChoice',
    ops: ['expertChoice'],
    subjects: () =>
      (['tokens', 'experts'] as const).flatMap((over) =>
        (['plain', 'masked', 'short'] as const).map((kind) => expertChoiceSubject(kind, over)),
      ),
  },
  {
    name: 'dispatch',
    ops: ['dispatch'],
    subjects: () =>
      (['plain', 'masked', 'all to one'] as const).map((kind) =>
        routingSubject(
          kind,
          (p) => ({ x: input(p) }),
          (routing, { x }) => ops.dispatch(x, routing, { straightThrough: false }),
        ),
      ),
  },
  {
    name: 'combine',
    ops: ['combine'],
    subjects: () =>
      (['plain', 'masked', 'short'] as const).map((kind) =>
        routingSubject(
          kind,
          (p) => ({ x: leaf([p.E, p.B, p.C, p.D]) }),
          (routing, { x }) => ops.combine(x, routing),
        ),
      ),
  },
  {
    name: 'expertFfn',
    ops: ['expertFfn'],
    subjects: () => [
      ...(['plain', 'empty experts', 'all to one', 'masked', 'every expert'] as const).map((kind) =>
        routingSubject(
          kind,
          (p) => ({ x: input(p), ...weightsOf(p) }),
          (routing, inputs) => ops.expertFfn(inputs.x, routing, ffnWeights(inputs), { straightThrough: false }),
        ),
      ),
      ...[
        ...activations.map((activation) => ({ activation })),
        ...(['geglu', 'gelu'] as const).map((activation) => ({ activation, geluApproximate: 'tanh' as const })),
      ].map((options) => ({
        ...routingSubject(
          'plain',
          (p) => ({ x: input(p), ...weightsOf(p, isGated(options.activation)) }),
          (routing, inputs) =>
            ops.expertFfn(inputs.x, routing, ffnWeights(inputs), { straightThrough: false, ...options }),
        ),
        label: JSON.stringify(options),
      })),
      ...[
        [3, 4],
        [2, 5, 7],
      ].map((shape) => {
        const p = { ...drawn('plain').problem, D: shape[shape.length - 1], E: 1, H: 5 }
        const fresh = Object.entries(weightsOf(p)).map(([name, { shape: s }]) => [name, leaf(s)] as const)
        return functionSubject(`dense ${shape}`, { x: leaf(shape), ...Object.fromEntries(fresh) }, (inputs) =>
          ops.expertFfn(inputs.x, null, ffnWeights(inputs)),
        )
      }),
    ],
  },
  {
    name: 'groupedGemm',
    ops: ['groupedGemm'],
    subjects: () =>
      [[3, 0, 4], [1], [0, 9, 2, 1]].map((groups) => {
        const [G, R] = [groups.length, groups.reduce((a, b) => a + b, 0)]
        return functionSubject(`${groups}`, { x: leaf([R, 3]), w: leaf([G, 5, 3]) }, ({ x, w }) =>
          ops.groupedGemm(x, w, tensor(Int32Array.from(groups))),
        )
      }),
  },
]

/** A GEGLU expert made of other ops, as a user would write one. */
export class UserExpert extends Module {
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

const moduleRows: Row[] = [
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
      routerSubject(() => ({ router: 'expertChoice' })),
      routerSubject(() => ({ router: 'expertChoice', expertChoiceOver: 'experts' })),
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

export const moeRows: Row[] = [...opRows, ...moduleRows]
