import { ops, type Tensor, tensor } from '../../lib/index.js'
import { activations, isGated } from '../../lib/ops/activation.js'
import { type Drawn, drawProblem, type Kind } from './draw-problem.js'
import { choiceOptions, forwardOptions, toTensor } from './from-problem.js'
import type { Float } from './golden-case.js'
import { functionSubject, type Leaf, type Leaves, type Subject } from './gradcheck.js'
import { draw, leaf, type Row } from './op-rows.js'
import type { Problem } from './reference.js'

// Problems whose routing has margins, so that no step of a central difference changes it.

export function drawn(kind: Kind, change: Partial<Problem> = {}): Drawn {
  const result = drawProblem(draw, kind)
  Object.assign(result.problem, { balanceLossCoef: 0.8, routerZLossCoef: 0.3, training: true, ...change })
  return result
}

export const input = (p: Problem): Leaf => ({ shape: [p.B, p.N, p.D], data: p.x })
export const sizes = ({ B, N, D, E, K, H }: Problem): string => JSON.stringify({ B, N, D, E, K, H })

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
  const { random, ...ofTokens } = forwardOptions(p, dtype)
  return ops.route(x, router, {
    ...random,
    ...ofTokens,
    ...choiceOptions(p),
    ntlb: p.ntlb,
    topN: p.K,
    capacity: p.C,
    threshold: tensor(Float32Array.from(p.thresholds)),
    noiseGates: p.gumbel !== null,
    noiseMult: p.noiseMult,
    scoreFunction: p.scoreFunction,
    expertBias: p.expertBias ? toTensor(p.expertBias, [p.E], dtype) : undefined,
    routingGroups: p.routingGroups,
    topGroups: p.topGroups,
    differentiableTopk: p.differentiableTopk,
    training: p.training,
    balanceLossCoef: p.balanceLossCoef,
    routerZLossCoef: p.routerZLossCoef,
    balanceDensity: p.assigned ? 'assigned' : 'kept',
    gateNormalization: p.normalization,
    secondPolicy: p.secondPolicy,
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
  'scores',
  'choices',
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
export const gentle = (p: Problem) => p.router.map((weight) => weight / 8)

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

export const moeRows: Row[] = [
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
      ...(
        [
          [1, [3, 4]],
          [1, [2, 5, 7]],
          [2, [2, 5, 7]],
          [3, [3, 2, 2, 4]],
        ] as const
      ).map(([E, shape]) => {
        const p = { ...drawn('plain').problem, D: shape[shape.length - 1], E, H: 5 }
        const fresh = Object.entries(weightsOf(p)).map(([name, { shape: s }]) => [name, leaf(s)] as const)
        return functionSubject(`${E} dense, ${shape}`, { x: leaf(shape), ...Object.fromEntries(fresh) }, (inputs) =>
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
