import { afterEach, describe, expect, test } from 'vitest'
import { type DType, dtypeCode } from '../../lib/runtime/dtype.js'
import { type Handle, native } from '../../lib/runtime/native.js'
import { activationKind } from '../../lib/runtime/native-ops.js'
import { live } from '../support/baseline.js'

// What the declaration of an op cannot say, which the addon checks before it makes anything: lib/ never asks for it.

const made: Handle[] = []
afterEach(() => {
  for (const handle of made.splice(0)) native.release(handle)
})
const zeros = (shape: readonly number[], dtype: DType = 'f32') => {
  const handle = native.full({ shape, dtype: dtypeCode(dtype), device: 0, value: 0 })
  made.push(handle)
  return handle
}
const indices = (...shape: number[]) => zeros(shape, 'i32')

const [B, N, D, E, K, H] = [2, 3, 4, 3, 2, 5]
const T = B * N

const route = () => ({
  x: zeros([B, N, D]),
  w: zeros([E, D]),
  threshold: zeros([K]),
  uniforms: null,
  gumbelUniforms: null,
  secondPlaceUniforms: null,
  expertBias: null,
  mask: null,
  secondDensity: false,
  assignment: false,
  rowOf: false,
  K,
  C: 2,
  seed: 1,
  step: 1,
  gumbelStep: 1,
  secondPlaceStep: 1,
  noiseMult: 0,
  eps: 1e-9,
  balanceLossCoef: 0,
  routerZLossCoef: 0,
  noiseGates: false,
  training: true,
  differentiableTopk: false,
  routingGroups: 1,
  topGroups: 1,
})
const routeBackward = () => ({
  dweight: null,
  dbalanceLoss: null,
  dzLoss: null,
  dtotalLoss: null,
  x: zeros([B, N, D]),
  w: zeros([E, D]),
  mask: null,
  expertIndex: indices(B, N, K),
  kept: indices(B, N, K),
  gate: zeros([B, N, K]),
  probs: zeros([B, N, E]),
  logits: zeros([B, N, E]),
  lse: zeros([B, N]),
  density: zeros([B, E]),
  secondDensity: null,
  dx: false,
  dw: true,
  dxSum: null,
  eps: 1e-9,
  balanceLossCoef: 0,
  routerZLossCoef: 0,
  noiseGates: false,
  training: true,
  differentiableTopk: false,
})
const experts = () => ({
  x: zeros([T, D]),
  assignment: null,
  ends: null,
  rowOf: null,
  weight: null,
  w1: zeros([E, H, D]),
  b1: null,
  multBias: null,
  w2: zeros([E, D, H]),
  b2: null,
  a: false,
  compute: dtypeCode('f32'),
  seed: 1,
  step: 1,
})
const plan = () => ({ assignment: indices(T * K), rowOf: indices(T, K), weight: zeros([T, K]) })
const expertsBackward = () => ({
  ...experts(),
  dy: zeros([T, D]),
  a: zeros([T, H]),
  dx: true,
  dweight: false,
  dw1: true,
  db1: false,
  dmultBias: false,
  dw2: true,
  db2: false,
  straightThrough: false,
})
const heads = { heads: 2, kvHeads: 2, scale: 1 }
const cached = (slots: number, rows: number) => ({
  q: zeros([B, N, 4]),
  k: zeros([B, N, 4]),
  v: zeros([B, N, 4]),
  position: indices(B),
  slot: null,
  keys: zeros([slots, rows, 4]),
  values: zeros([slots, rows, 4]),
  ...heads,
})
const adafactor = () => ({
  p: zeros([1, 3, 4]),
  g: zeros([1, 3, 4]),
  row: null,
  col: null,
  v: null,
  m: null,
  norm: null,
  step: 1,
  lr: 0.1,
  decayRate: -0.8,
  eps1: 1e-30,
  eps2: 1e-3,
  clip: 1,
  beta1: 0,
  weightDecay: 0,
  scale: 0,
})

const refusals: [string, () => unknown][] = [
  ['[topk] K must be at most 3, got 4', () => native.topk({ x: zeros([2, 3]), K: 4 })],
  ['[extremum] the axis must not be empty', () => native.extremum({ x: zeros([2, 0, 3]), largest: true })],
  ['[randperm] at most 2^31 - 1 numbers are permuted', () => native.randperm({ shape: [2 ** 31], ...permuted })],
  ['[route] K must be at most 3, got 4', () => native.route({ ...route(), threshold: zeros([4]), K: 4 })],
  [
    '[route] secondDensity needs K of at least 2',
    () => native.route({ ...route(), threshold: zeros([1]), K: 1, secondDensity: true }),
  ],
  ['[route] assignment and rowOf come together', () => native.route({ ...route(), assignment: true })],
  ['[route] assignment and rowOf come together', () => native.route({ ...route(), rowOf: true })],
  ['[route] too many slots', () => native.route({ ...route(), assignment: true, rowOf: true, C: 2 ** 29 })],
  [
    '[routeBackward] dx is an output or added to dxSum, not both',
    () => native.routeBackward({ ...routeBackward(), dx: true, dxSum: zeros([B, N, D]) }),
  ],
  [
    '[routeBackward] dxSum is for routings without a mask',
    () => native.routeBackward({ ...routeBackward(), mask: indices(B, N), dxSum: zeros([B, N, D]) }),
  ],
  ['[adafactor] row and col come together', () => native.adafactor([{ ...adafactor(), row: zeros([1, 3]) }])],
  ['[adafactor] without row and col there must be v', () => native.adafactor([adafactor()])],
  [
    '[attention] heads must be a multiple of kvHeads, got 3 and 2',
    () =>
      native.attention({
        q: zeros([B, N, 6]),
        k: zeros([B, N, 4]),
        v: zeros([B, N, 4]),
        mask: null,
        visible: 1,
        ...heads,
        heads: 3,
      }),
  ],
  ['[cachedAttention] a slot of 2 rows has no room for 3', () => native.cachedAttention(cached(B, 2))],
  ['[cachedAttention] 1 slots are too few for 2 sequences', () => native.cachedAttention(cached(1, N))],
  [
    '[rotary] the width of a head must be even, got 3',
    () => native.rotary({ x: zeros([1, 2, 6]), position: null, heads: 2, base: 10, back: false }),
  ],
  ...[0, 4].map((K): [string, () => unknown] => [
    `[routerStatistics] K must be from 1 to 3, got ${K}`,
    () =>
      native.routerStatistics({
        expertIndex: indices(B, N, K),
        kept: indices(B, N, K),
        gate: zeros([B, N, K]),
        logits: null,
        mask: null,
        E,
        C: 2,
      }),
  ]),
  ...(['assignment', 'rowOf', 'weight'] as const).map((only): [string, () => unknown] => [
    '[expertFfn] assignment, rowOf and weight come together',
    () => native.expertFfn({ ...experts(), [only]: plan()[only] }),
  ]),
  [
    '[expertFfn] assignment, rowOf and weight come together',
    () => native.expertFfn({ ...experts(), ends: indices(E) }),
  ],
  ['[expertFfn] 7 rows are not a multiple of 3', () => native.expertFfn({ ...experts(), x: zeros([7, D]) })],
  [
    '[expertFfn] 6 rows are not a multiple of 0',
    () => native.expertFfn({ ...experts(), w1: zeros([0, H, D]), w2: zeros([0, D, H]) }),
  ],
  ['[expertFfn] dropout must be in [0, 1), got 1', () => native.expertFfn({ ...experts(), dropout: 1 })],
  [
    '[expertFfn] multBias belongs to the gated activations',
    () => native.expertFfn({ ...experts(), activation: activationKind.relu, multBias: zeros([E, H]) }),
  ],
  [
    '[expertFfnBackward] without weight there is no dweight',
    () => native.expertFfnBackward({ ...expertsBackward(), dweight: true }),
  ],
  [
    '[expertFfnBackward] without b1 there is no gradient of it',
    () => native.expertFfnBackward({ ...expertsBackward(), db1: true }),
  ],
  [
    '[expertFfnBackward] the gradients of the parameters come together',
    () => native.expertFfnBackward({ ...expertsBackward(), dw2: false }),
  ],
]
const permuted = { dtype: dtypeCode('i32'), device: 0, seed: 1, step: 1 }

describe('an op refuses, and makes nothing', () => {
  test.each(refusals)('%s', (text, call) => {
    const before = live().tensors
    expect(call).toThrow(text)
    expect(live().tensors - before, 'the arguments alone').toBe(made.length)
  })
})
