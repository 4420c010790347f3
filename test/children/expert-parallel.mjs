// A rank of a job whose layers spread their experts over it. The truth is one process: a layer with all experts gets the
// batches of all ranks one after the other, and the gradients add up.
import {
  AdamW,
  FeedForward,
  initProcessGroup,
  Linear,
  Module,
  MoE,
  manualSeed,
  memory,
  ops,
  rand,
  randn,
  SoftMoE,
  scope,
  tensor,
  zeros,
} from '../../dist/index.js'
import { all, expect, near, numbers, range, runJob } from './checks.mjs'

const which = process.argv[3]

/** An expert whose rows depend on each other: it sees which rows come together. */
class Mixing extends Module {
  constructor(dim) {
    super()
    this.inner = new Linear(dim, dim, { dtype: 'f64' })
  }
  forward(x, more) {
    const y = this.inner.forward(x).add(x.mean(1, true))
    return more ? y.mul(more) : y
  }
}

const D = 6
const common = { dim: D, dtype: 'f64', numExperts: 4 }
const moe = (options) => (group) => new MoE({ ...common, ...(options.router ? {} : all), ...options, ...group })
const own = (make, options) => (group) =>
  new MoE({ ...common, ...all, numExperts: 3, experts: range(3, make), ...options, ...group })
const soft = (options) => (group) =>
  new SoftMoE({ dim: D, dtype: 'f64', numExperts: 3, numSlots: 2, ...options, ...group })
const uniforms = (K) => (B, N) => ({ random: { uniforms: rand([K, B, N], { dtype: 'f64' }) } })
const mask = (B, N) => ({
  mask: tensor(
    Int32Array.from({ length: B * N }, (_, i) => (i % 5 === 1 ? 0 : 1)),
    [B, N],
  ),
})

/** Layers by name, with the options of a forward on B sequences of N tokens. */
const layers = {
  'top-2': [moe({})],
  'top-2 with one expert': [moe({ numExperts: 1, gatingTopN: 1 })],
  'top-2 of five': [moe({ numExperts: 5 })],
  'top-2 of two': [moe({ numExperts: 2 })],
  'top-3 of three, no capacity': [moe({ numExperts: 3, gatingTopN: 3, dropless: true })],
  'random second expert': [moe({ secondPolicyTrain: 'random' }), uniforms(2)],
  'threshold, no capacity': [moe({ secondPolicyTrain: 'threshold', dropless: true, thresholdTrain: 0.5 })],
  'little capacity': [moe({ capacityFactorTrain: 0.25, minExpertCapacity: 1 })],
  'no slots': [moe({ capacityFactorTrain: 0, minExpertCapacity: 0 })],
  switch: [moe({ router: 'switch' })],
  'switch without capacity': [moe({ router: 'switch', dropless: true })],
  switchMax: [moe({ router: 'switchMax', capacityFactorTrain: 0.5, minExpertCapacity: 1 })],
  ntlb: [moe({ router: 'ntlb', capacityFactorTrain: 0.5, minExpertCapacity: 1 })],
  'expert choice': [moe({ router: 'expertChoice' })],
  'a mask': [moe({}), mask],
  'a mask without capacity': [moe({ dropless: true }), mask],
  'no gradient of the dispatch': [moe({ straightThroughDispatchTensor: false })],
  'scaled inputs': [moe({ scaleInput: true, routedScalingFactor: 2.5 })],
  'scaled inputs without capacity': [moe({ scaleInput: true, dropless: true })],
  'another width': [moe({ outputDim: 4, activation: 'relu', expertBiases: false })],
  'another width without capacity': [
    moe({ outputDim: 9, activation: 'swiglu', dropless: true, expertBiases: 'linear' }),
  ],
  'shared experts': [moe({ sharedExperts: 1, sharedExpertGate: true }), mask],
  'groups of tokens': [moe({ groupSize: 2 })],
  'two levels': [moe({ numExperts: [3, 2] })],
  'two levels of another width': [moe({ numExperts: [2, 2], outputDim: 5, routedScalingFactor: 1.5 })],
  'experts of one’s own': [own(() => new FeedForward(D, { dtype: 'f64' }))],
  'experts with more inputs': [
    own(() => new Mixing(D)),
    (B, N) => ({ expertInputs: [randn([B, N, D], { dtype: 'f64' })] }),
  ],
  'experts of one’s own without capacity': [own(() => new Mixing(D), { dropless: true })],
  'soft MoE': [soft({})],
  'soft MoE with a mask and noise': [
    soft({ geglu: true, useLayerNorm: true, numExperts: 5 }),
    (B, N) => ({ ...mask(B, N), addNoise: true, random: { gumbelUniforms: rand([B, N, 5, 2], { dtype: 'f64' }) } }),
  ],
}

/** B and N of each rank. */
const shapes = {
  'the same': () => [2, 8],
  'other batches': (r) => [r + 1, 8],
  'other lengths': (r) => [2, 4 + 2 * r],
  'none on rank 0': (r) => [r === 0 ? 0 : 2, 8],
  'no tokens on the last': (r, R) => [2, r === R - 1 ? 0 : 6],
}

const resultOf = (y) =>
  Array.isArray(y) ? { outputs: y.outputs, losses: [y.balanceLoss, y.routerZLoss] } : { outputs: y, losses: [] }
const totalOf = ({ outputs, losses }, weights) =>
  losses.reduce((sum, loss, i) => sum.add(loss.mul(0.1 + i)), outputs.mul(weights).sum())

/** The values that a module has under the names of its state, or their gradients; zeros for those of other ranks. */
function whole(module, names, dict) {
  const state = dict(module)
  return names.map(([name, shape]) => state[name] ?? zeros(shape, { dtype: 'f64' }))
}

function compare(name, make, optionsOf, shapeOf, group, limit = 1e-12) {
  const { rank, size: R } = group
  const seeded = (share) => {
    manualSeed(11)
    return make(share)
  }
  const [truth, layer] = [seeded({}), seeded({ processGroup: group, allowVarSeqLen: shapeOf !== shapes['the same'] })]
  const inputs = range(R, (r) => {
    manualSeed(100 + r)
    const [B, N] = shapeOf(r, R)
    const x = randn([B, N, D], { dtype: 'f64', requiresGrad: true })
    return { x, options: optionsOf?.(B, N) ?? {}, B, N }
  })
  const runs = inputs.map(({ x, options }) => resultOf(truth.forward(x, options)))
  const weights = runs.map(({ outputs }, r) => {
    manualSeed(200 + r)
    return randn(outputs.shape, { dtype: 'f64' })
  })
  for (const [r, run] of runs.entries()) totalOf(run, weights[r]).backward()
  const { x, options } = inputs[rank]
  const wantedDx = numbers(x.grad)
  x.grad = null
  const mine = resultOf(layer.forward(x, options))
  near(`${name}: outputs`, numbers(mine.outputs), numbers(runs[rank].outputs), limit)
  for (const [i, loss] of mine.losses.entries())
    near(`${name}: loss ${i}`, numbers(loss), numbers(runs[rank].losses[i]), limit)
  totalOf(mine, weights[rank]).backward()
  near(`${name}: dx`, numbers(x.grad), wantedDx, limit)
  const state = truth.stateDict()
  const names = Object.entries(state).map(([key, { shape }]) => [key, shape])
  const gradients = truth.gradDict()
  const given = layer.stateDict()
  for (const [key, value] of Object.entries(given))
    expect(`${name}: initial ${key}`, numbers(value), numbers(state[key]))
  const parts = whole(layer, names, (module) => module.gradDict()).map((gradient) => gradient.reshape([-1]))
  const sums = numbers(ops.allReduce(ops.concat(parts, 0), group))
  for (const [i, [key]] of names.entries()) {
    const own = sums.splice(0, parts[i].size)
    if (gradients[key]) near(`${name}: d ${key}`, own, numbers(gradients[key]), limit)
  }
  const isExpert = (key) => /^experts\.(experts\.)?\d/.test(key)
  const computes = Object.entries(layer.gradDict()).some(([key, x]) => isExpert(key) && numbers(x).some((n) => n !== 0))
  if (shapeOf === shapes['other lengths'] && R % truth.numExperts === 0 && !name.startsWith('no slots'))
    expect(`${name}: every replica computes`, computes, true)
  const held = Object.keys(given).filter(isExpert).length / Object.keys(state).filter(isExpert).length
  const E = truth.numExperts
  const most = R > E ? 1 : Math.ceil(E / R)
  expect(`${name}: experts held`, held <= most / E + 1e-9 && held >= Math.floor(E / R) / E, true)
  expect(`${name}: a whole state loads`, layer.loadStateDict(state), { missing: [], unexpected: [] })
  truth.dispose()
  layer.dispose()
}

function exact() {
  const group = initProcessGroup()
  for (const [name, [make, options]] of Object.entries(layers))
    for (const [shape, shapeOf] of Object.entries(shapes)) {
      if (which === 'some' && shape !== 'none on rank 0' && shape !== 'other lengths') continue
      if (name === 'groups of tokens' && shape.startsWith('no')) continue
      scope(() => compare(`${name}, ${shape}`, make, options, shapeOf, group))
    }
  group.destroy()
}

async function failure(fn) {
  try {
    await fn()
    return 'none'
  } catch (error) {
    return `${error.code}: ${error.message}`
  }
}

/** What a rank refuses, and that the group goes on after it. */
async function refusals() {
  const group = initProcessGroup()
  const { rank } = group
  const layer = new MoE({ ...common, ...all, processGroup: group })
  const shape = rank === 0 ? [2, 8] : [1, 9]
  expect(
    'other lengths',
    await failure(() => layer.forward(zeros([...shape, D], { dtype: 'f64' }))),
    'SHAPE: [MoE.forward] x must be [B, N, D] of the same size on all ranks without allowVarSeqLen: ' +
      'rank 0 has [2, 8] with 4 slots, rank 1 has [1, 9] with 4 slots',
  )
  expect('the group goes on', layer.forward(zeros([1, 8, D], { dtype: 'f64' })).outputs.shape, [1, 8, D])
  const varies = new MoE({ ...common, ...all, processGroup: group, allowVarSeqLen: true })
  expect(
    'lengths asked for in an asynchronous call',
    await failure(() => varies.forwardAsync(zeros([1, 8, D], { dtype: 'f64' }))),
    'UNSUPPORTED: [MoE.forward] allowVarSeqLen asks the other ranks for their lengths, which an asynchronous call cannot do: call it after the call',
  )
  const groups = new MoE({ ...common, ...all, numExperts: [2, 2], processGroup: group })
  expect(
    'random numbers of groups',
    await failure(() => groups.forward(zeros([1, 8, D], { dtype: 'f64' }), { groupRandom: [{}, {}] })),
    'UNSUPPORTED: [MoE.forward] groupRandom is not available with a processGroup: groups sample their own',
  )
  group.destroy()
  expect(
    'a destroyed group',
    await failure(() => new SoftMoE({ dim: D, numSlots: 1, processGroup: group })),
    'DISPOSED: [SoftMoE] the process group has been destroyed',
  )
}

/** A rank holds its part of the parameters, gradients and state of the optimizer, and a training loop is flat. */
function memoryOf() {
  const group = initProcessGroup()
  const { size: R } = group
  const bytesOf = (share) => {
    const before = memory().bytes
    const layer = new MoE({ dim: 16, numExperts: 4 * R, ...share })
    const made = memory().bytes - before
    const experts = layer.experts.parameters().reduce((sum, { size }) => sum + 4 * size, 0)
    const optimizer = new AdamW(layer.parameters(), { lr: 0.001 })
    const train = () =>
      scope(() => {
        optimizer.zeroGrad()
        layer
          .forward(randn([2, 16, 16]))
          .outputs.square()
          .mean()
          .backward()
        optimizer.step()
      })
    for (let i = 0; i < 3; i++) train()
    const held = memory().bytes - before
    for (let i = 0; i < 300; i++) train()
    expect('a flat loop', memory().bytes - before, held)
    layer.dispose()
    optimizer.dispose()
    return { made, experts, held }
  }
  const [whole, part] = [bytesOf({}), bytesOf({ processGroup: group })]
  expect('experts', part.experts, whole.experts / R)
  expect('what a layer makes', whole.made - part.made, whole.experts - part.experts)
  expect('gradients and state', whole.held - part.held, 4 * (whole.experts - part.experts))
  group.destroy()
}

await runJob({ exact, refusals, memory: memoryOf })
