// A rank of a job that trains a model together with the others. The truth is one process that has the batches of all.
import {
  AdamW,
  captureStep,
  clipGradNorm,
  dataParallel,
  Generator,
  initProcessGroup,
  Linear,
  Module,
  MoE,
  MoEMonitor,
  manualSeed,
  ops,
  randn,
  scope,
  setNumThreads,
  trainStepAsync,
} from '../../dist/index.js'
import { all, expect, near, numbers, range, runJob } from './checks.mjs'

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
        if (n === 1) {
          one.zeroGrad()
          one.lossOf(...inputs[R + rank]).backward()
          const alone = one.gradDict()
          for (const [key, x] of gradients())
            near(`${what}: of this rank alone, d ${key}`, x, numbers(alone[key]), 1e-6)
        }
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

/** Loads of all ranks: biases of routers and a monitor's report are those of one process. */
async function loads() {
  const group = initProcessGroup()
  const { rank, size: R } = group
  const bias = { scoreFunction: 'sigmoid', expertBias: true, numExperts: 4 }
  const layers = [
    ['on every rank', {}, {}],
    ['shared out', { processGroup: group }, {}],
    ['shared out, two levels', { processGroup: group }, { numExperts: [Math.max(2, R), 4] }],
    ['replicas, two levels', { processGroup: group }, { numExperts: [2, 4] }],
  ]
  for (const [name, share, options] of layers)
    for (const isParallel of name === 'shared out' ? [true, false] : [true]) {
      const made = (share) => {
        manualSeed(5)
        return new MoE({ dim: 16, ...all, ...bias, ...options, ...share })
      }
      const [one, layer] = [made({}), made(share)]
      const parallel = isParallel ? dataParallel(layer, group) : null
      const [watchedOne, watched] = [new MoEMonitor(one), new MoEMonitor(layer)]
      const generator = new Generator(77)
      for (let step = 0; step < 3; step++) {
        const inputs = range(R, () => randn([2, 12, 16], { generator }).add(step))
        for (const x of inputs) one.forward(x)
        layer.forward(inputs[rank])
        one.updateExpertBias(0.01)
        layer.updateExpertBias(0.01)
      }
      const whole = one.stateDict()
      const what = `${name}, ${isParallel}`
      for (const [key, x] of Object.entries(layer.stateDict()))
        if (key.endsWith('expert_bias')) near(`${what}: ${key}`, numbers(x), numbers(whole[key]), 1e-6)
      const [own, wanted] = [watched.report(group), watchedOne.report()]
      for (const field of ['tokens', 'forwards', 'keptPerExpert', 'firstChoicePerExpert', 'routerEntropy'])
        near(`${what}: ${field}`, [own[0][field]].flat(), [wanted[0][field]].flat(), 1e-5)
      expect(`${what}: of this rank alone`, watched.report()[0].tokens, wanted[0].tokens / R)
      for (const inner of R > 1 && name === 'shared out, two levels' ? own.slice(1) : [])
        expect(`${what}: ${inner.name}`, inner.tokens, wanted.find((each) => each.name === inner.name).tokens)
      parallel?.dispose()
      if (name === 'on every rank') {
        manualSeed(200 + rank)
        layer.forward(randn([1, 12 + rank, 16]))
        if (rank === 0) layer.updateExpertBias(0.01) // of this rank alone again: nobody is waited for
      }
    }
  group.destroy()
}

/** A layer in float32 and one in float64, a router with a bias that is no parameter, and a frozen layer. */
class Mixed extends Module {
  constructor(share) {
    super()
    this.first = new Linear(16, 16)
    this.exact = new Linear(16, 16, { dtype: 'f64' })
    this.moe = new MoE({ dim: 16, numExperts: 2, ...all, scoreFunction: 'sigmoid', expertBias: true, ...share })
    this.frozen = new Linear(16, 3)
    for (const parameter of this.frozen.parameters()) parameter.requiresGrad = false
  }
  lossOf(x) {
    const y = this.exact.forward(this.first.forward(x).to('f64')).to('f32')
    return this.frozen.forward(this.moe.forward(y).outputs).square().mean()
  }
}

/** Replicas of experts count once, dtypes do not mix in a bucket, and everything begins as on rank 0. */
function mixed() {
  const group = initProcessGroup()
  const { rank, size: R } = group
  const inputs = range(R, (r) => {
    manualSeed(100 + r)
    return randn([2, 12, 16])
  })
  const made = (seed, share) => {
    manualSeed(seed)
    const model = new Mixed(share)
    model.moe.gate.expertBias.copyFrom(randn([2]).mul(0.01))
    return model
  }
  const one = made(5, {})
  for (const x of inputs)
    one
      .lossOf(x)
      .mul(1 / R)
      .backward()
  const gradients = one.gradDict()
  const norm = clipGradNorm(one.parameters(), 1e9)
  for (const [name, seed, share] of [
    ['on every rank', 5 + rank, {}],
    ['shared out', 5, { processGroup: group }],
  ])
    for (const shardOptimizer of [false, true]) {
      const what = `${name}, ${shardOptimizer}`
      const model = made(seed, share)
      const parallel = dataParallel(model, group, { shardOptimizer })
      const whole = one.stateDict()
      for (const [key, x] of Object.entries(model.stateDict())) {
        expect(`${what}: dtype of ${key}`, x.dtype, whole[key].dtype)
        expect(`${what}: first ${key}`, numbers(x), numbers(whole[key]))
      }
      model.lossOf(inputs[rank]).backward()
      for (const [key, x] of Object.entries(model.gradDict())) {
        expect(`${what}: dtype of d ${key}`, x.dtype, gradients[key].dtype)
        const isElsewhere = shardOptimizer && numbers(x).every((value) => value === 0)
        if (!isElsewhere) near(`${what}: d ${key}`, numbers(x), numbers(gradients[key]), 2e-6)
      }
      near(`${what}: norm`, numbers(parallel.clipGradNorm(1e9)), [norm], 1e-6)
      parallel.dispose()
    }
  group.destroy()
}

await runJob({ steps, data, loads, mixed })
