// A rank of a job whose layers spread their experts over it. Prints one line of JSON: how many things were tried, and what
// was wrong. The truth is one process: a layer with all experts gets the batches of all ranks one after the other, and the
// gradients add up.
import { writeSync } from 'node:fs'
import {
  AdamW,
  captureStep,
  clipGradNorm,
  dataParallel,
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
  setNumThreads,
  tensor,
  trainStepAsync,
  zeros,
} from '../../dist/index.js'

const [what, which] = process.argv.slice(2)
const wrong = []
let tried = 0
const range = (n, f) => Array.from({ length: n }, (_, i) => f(i))
const numbers = (x) => Array.from(x.dataSync())

function near(name, got, wanted, limit) {
  tried++
  let [difference, norm] = [0, 0]
  for (const [i, value] of wanted.entries()) {
    difference += (got[i] - value) ** 2
    norm += value ** 2
  }
  if (got.length !== wanted.length || !(Math.sqrt(difference) <= limit * Math.sqrt(norm)))
    wrong.push(`${name}: ${got.length} of ${wanted.length}, error ${Math.sqrt(difference / norm)}`)
}

function expect(name, got, wanted) {
  tried++
  if (JSON.stringify(got) !== JSON.stringify(wanted))
    wrong.push(`${name}: ${JSON.stringify(got)}, wanted ${JSON.stringify(wanted)}`)
}

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
const all = { secondPolicyTrain: 'all', secondPolicyEval: 'all' } // nothing is sampled
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

/** x + moe(x), and a head: a model whose layers other than experts are on every rank. */
class Model extends Module {
  constructor(options, share) {
    super()
    this.moe = new MoE({ dim: 16, numExperts: 4, ...all, ...options, ...share })
    this.head = new Linear(16, 3)
  }
  lossOf(x, target) {
    const { outputs, totalAuxLoss } = this.moe.forward(x)
    return this.head.forward(x.add(outputs)).sub(target).square().mean().add(totalAuxLoss)
  }
}

/** 20 steps of AdamW at once, in asynchronous calls and captured, against those of one process. */
async function steps() {
  const group = initProcessGroup()
  const { rank, size: R } = group
  const inputs = range(R, (r) => {
    manualSeed(100 + r)
    return [randn([2, 12, 16]), randn([2, 12, 3])]
  })
  const made = (options, share) => {
    manualSeed(5)
    const model = new Model(options, share)
    return { model, optimizer: new AdamW(model.parameters(), { lr: 0.01 }) }
  }
  const lossesOf = async (run, step) => {
    const losses = []
    for (let i = 0; i < 20; i++) losses.push(await run(step))
    return losses
  }
  for (const [name, options, ways] of [
    ['capacity', {}, ['at once', 'asynchronous', 'captured']],
    ['no capacity', { dropless: true }, ['at once', 'asynchronous', 'captured']],
    ['two levels', { numExperts: [4, 2] }, ['at once', 'asynchronous', 'captured']],
  ]) {
    const one = made(options)
    const wanted = await lossesOf(
      (step) => scope(step),
      () => {
        one.optimizer.zeroGrad()
        const losses = inputs.map((input) => {
          const loss = one.model.lossOf(...input)
          loss.backward()
          return loss.item()
        })
        one.optimizer.step()
        return losses[rank]
      },
    )
    for (const way of ways)
      for (const threads of way === 'captured' ? [1, 2] : [1]) {
        setNumThreads(threads)
        const { model, optimizer } = made(options, { processGroup: group })
        const onAll = [...model.head.parameters(), ...model.moe.gate.parameters()]
        const step = () => {
          optimizer.zeroGrad()
          const loss = model.lossOf(...inputs[rank])
          loss.backward()
          for (const parameter of onAll) parameter.grad = ops.allReduce(parameter.grad, group).detach()
          optimizer.step()
          return loss
        }
        const captured = way === 'captured' && captureStep(step)
        const run = async () => {
          if (captured) return captured.replay().item()
          if (way === 'at once') return scope(() => step().item())
          const loss = await trainStepAsync(step)
          const value = loss.item()
          loss.dispose()
          return value
        }
        near(`${name}, ${way}, ${threads}: losses`, await lossesOf(run), wanted, 1e-6)
        const [state, whole] = [model.stateDict(), one.model.stateDict()]
        for (const [key, value] of Object.entries(state))
          near(`${name}, ${way}, ${threads}: ${key}`, numbers(value), numbers(whole[key]), 1e-4)
      }
  }
  group.destroy()
}

/** Data parallelism of a whole model, with and without shared out experts, against one process. */
async function data() {
  const group = initProcessGroup()
  const { rank, size: R } = group
  const inputs = range(2 * R, (r) => {
    manualSeed(100 + r)
    return [randn([2, 12, 16]), randn([2, 12, 3])]
  })
  const widths = range(R, (n) => n + 1).filter((n) => R % n === 0)
  for (const [name, n, options] of [
    ...widths.map((n) => [`experts over ${n}`, n, {}]),
    ['replicas of experts', R, { numExperts: 2 }],
    ['two levels', R, { numExperts: [2, 3] }],
  ])
    for (const reduction of ['mean', 'sum']) {
      const { expertParallel } = group.split({ expertParallel: n })
      const share = n > 1 ? { processGroup: expertParallel } : {}
      const made = (seed, share) => {
        manualSeed(seed)
        return new Model(options, share)
      }
      const one = made(5, {})
      const scale = reduction === 'mean' ? 1 / R : 1
      const truthOf = (count) => {
        one.zeroGrad()
        for (const input of inputs.slice(0, count))
          one
            .lossOf(...input)
            .mul(scale)
            .backward()
        return Object.fromEntries(Object.entries(one.gradDict()).map(([key, x]) => [key, numbers(x)]))
      }
      const both = truthOf(2 * R)
      const wanted = truthOf(R)
      const norm = clipGradNorm(one.parameters(), 0.01)
      const clipped = Object.fromEntries(Object.entries(one.gradDict()).map(([key, x]) => [key, numbers(x)]))
      const bits = []
      for (const bucketBytes of [1, 700, 2 ** 30]) {
        const model = made(n > 1 ? 5 : 5 + rank, share)
        const parallel = dataParallel(model, group, { bucketBytes, reduction })
        const what = `${name}, ${reduction}, ${bucketBytes}`
        const whole = one.stateDict()
        for (const [key, x] of Object.entries(model.stateDict()))
          near(`${what}: first ${key}`, numbers(x), numbers(whole[key]), 0)
        const gradients = () => Object.entries(model.gradDict()).map(([key, x]) => [key, numbers(x)])
        model.lossOf(...inputs[rank]).backward()
        for (const [key, x] of gradients()) near(`${what}: d ${key}`, x, wanted[key], 1e-6)
        bits.push(JSON.stringify(gradients()))
        near(`${what}: norm`, numbers(parallel.clipGradNorm(0.01)), [norm], 1e-6)
        for (const [key, x] of gradients()) near(`${what}: clipped d ${key}`, x, clipped[key], 2e-6)
        model.zeroGrad()
        parallel.noSync(() => model.lossOf(...inputs[R + rank]).backward())
        model.lossOf(...inputs[rank]).backward()
        for (const [key, x] of gradients()) near(`${what}: two batches, d ${key}`, x, both[key], 2e-6)
        model.zeroGrad()
        const nothing = () =>
          void model
            .lossOf(...inputs[rank])
            .mul(0)
            .backward()
        await parallel.noSync(() => trainStepAsync(nothing))
        await trainStepAsync(() => void model.lossOf(...inputs[rank]).backward())
        bits.push(JSON.stringify(gradients()))
        const captured = captureStep(() => {
          model.zeroGrad()
          const loss = model.lossOf(...inputs[rank])
          loss.backward()
          return loss
        })
        captured.replay()
        captured.replay()
        bits.push(JSON.stringify(gradients()))
        captured.dispose()
        const clips = captureStep(() => {
          model.zeroGrad()
          model.lossOf(...inputs[rank]).backward()
          return parallel.clipGradNorm(0.01)
        })
        near(`${what}: norm of a captured step`, numbers(clips.replay()), [norm], 1e-6)
        for (const [key, x] of gradients()) near(`${what}: clipped in a captured step, d ${key}`, x, clipped[key], 2e-6)
        clips.dispose()
        parallel.dispose()
        model.zeroGrad()
        model.lossOf(...inputs[rank]).backward()
        if (n === 1 && R > 1) expect(`${what}: disposed`, JSON.stringify(gradients()) === bits[0], false)
      }
      expect(`${name}, ${reduction}: the same bits`, new Set(bits).size, 1)
    }
  for (const [name, options] of [
    ['random second experts', {}],
    ['noise', { noiseGates: true, gatingTopN: 3 }],
    ['sampled experts', { sampleExperts: true }],
    ['second places', { secondPlaceProb: 0.5, secondPlaceTemperature: 1 }],
    ['in float64', { dtype: 'f64' }],
  ]) {
    manualSeed(5)
    const layer = new MoE({ dim: 16, numExperts: 4, ...options })
    const parallel = dataParallel(layer, group)
    const x = randn([2 * R, 12, 16], { dtype: options.dtype })
    const after = (fn) => {
      const generator = manualSeed(77)
      return { y: fn(), step: generator.step }
    }
    const whole = after(() => layer.forward(x).routing)
    const part = after(() => parallel.asOneBatch(() => layer.forward(x.slice(0, 2 * rank, 2 * rank + 2)).routing))
    const wanted = whole.y.expertIndex.slice(0, 2 * rank, 2 * rank + 2)
    expect(`one batch: ${name}`, numbers(part.y.expertIndex), numbers(wanted))
    expect(`one batch: kept, ${name}`, numbers(part.y.kept), numbers(whole.y.kept.slice(0, 2 * rank, 2 * rank + 2)))
    expect(`one batch: samples, ${name}`, part.step, whole.step)
    parallel.dispose()
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

const jobs = { exact, steps, data, refusals, memory: memoryOf }
await jobs[what]()
writeSync(1, `${JSON.stringify({ tried, wrong })}\n`)
