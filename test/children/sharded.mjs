// A rank of a job whose ranks share out the updates of the parameters. The truth is the same job where every rank updates all.
import {
  Adafactor,
  AdamW,
  captureStep,
  dataParallel,
  initProcessGroup,
  Linear,
  Lion,
  Module,
  MoE,
  manualSeed,
  memory,
  randn,
  SGD,
  scope,
  trainStepAsync,
} from '../../dist/index.js'
import { all, expect, near, numbers, runJob } from './checks.mjs'

class Model extends Module {
  constructor(share) {
    super()
    this.first = new Linear(16, 16)
    this.moe = new MoE({ dim: 16, numExperts: 4, ...all, ...share })
    this.head = new Linear(16, 3)
    this.frozen = new Linear(16, 3)
    for (const parameter of this.frozen.parameters()) parameter.requiresGrad = false
  }
  lossOf(x, target) {
    const { outputs, totalAuxLoss } = this.moe.forward(this.first.forward(x))
    return this.head.forward(x.add(outputs)).sub(target).square().mean().add(totalAuxLoss)
  }
}

const optimizers = {
  AdamW: (p) => new AdamW(p, { lr: 0.01 }),
  'AdamW in groups': (p) => new AdamW([{ params: p.slice(0, 3), lr: 0.02, weightDecay: 0 }, { params: p.slice(3) }]),
  SGD: (p) => new SGD(p, { lr: 0.1, momentum: 0.9 }),
  Lion: (p) => new Lion(p, { lr: 0.001 }),
  Adafactor: (p) => new Adafactor(p),
}

async function steps() {
  const group = initProcessGroup()
  const { rank, size: R } = group
  manualSeed(100 + rank)
  const input = [randn([2, 12, 16]), randn([2, 12, 3])]
  const shares = [{}, ...(R > 1 ? [{ processGroup: group }] : [])]
  if (R === 4) shares.push({ processGroup: group.split({ expertParallel: 2 }).expertParallel })
  for (const [k, share] of shares.entries())
    for (const [name, make] of Object.entries(optimizers).slice(0, k === 0 ? undefined : 1))
      for (const way of ['at once', 'asynchronous', 'captured']) {
        const what = `${k}, ${name}, ${way}`
        const run = async (shardOptimizer, bucketBytes) => {
          manualSeed(5)
          const model = new Model(share)
          const parallel = dataParallel(model, group, { shardOptimizer, bucketBytes })
          const optimizer = make(model.parameters().filter(({ requiresGrad }) => requiresGrad))
          const step = () => {
            optimizer.zeroGrad()
            const loss = model.lossOf(...input)
            parallel.noSync(() => model.lossOf(input[0].mul(2), input[1]).backward())
            loss.backward()
            const norm = parallel.clipGradNorm(0.5)
            optimizer.step(way === 'captured' ? { onNonFinite: 'skip', norm } : {})
            return norm
          }
          const captured = way === 'captured' && captureStep(step)
          const norms = []
          for (let i = 0; i < 5; i++) {
            if (captured) norms.push(captured.replay().item())
            else if (way === 'at once') norms.push(scope(() => step().item()))
            else {
              const norm = await trainStepAsync(step)
              norms.push(norm.item())
              norm.dispose()
            }
          }
          const own = model.parameters().filter(({ grad }) => grad).length
          captured?.dispose?.()
          return { model, optimizer, parallel, norms, own }
        }
        const plain = await run(false)
        const [sharded, small] = [await run(true), await run(true, 1)]
        near(`${what}: norms`, sharded.norms, plain.norms, 1e-6)
        const whole = plain.model.stateDict()
        for (const [key, x] of Object.entries(sharded.model.stateDict())) {
          near(`${what}: ${key}`, numbers(x), numbers(whole[key]), 1e-5)
          const { [key]: other } = small.model.stateDict()
          near(`${what}: ${key}, small buckets`, numbers(other), numbers(x), 1e-6)
        }
        const [state, all] = [sharded.optimizer.stateDict(), plain.optimizer.stateDict()]
        for (const [key, x] of Object.entries(state)) near(`${what}: ${key}`, numbers(x), numbers(all[key]), 1e-4)
        const trained = sharded.optimizer.parameters
        const sizeOf = (dict) => Object.values(dict).reduce((sum, { size }) => sum + size, 0)
        const largest = Math.max(...trained.map(({ size }) => size))
        if (k === 0 && name === 'AdamW') {
          expect(`${what}: size of the state`, Math.abs(sizeOf(state) - sizeOf(all) / R) <= 2 * largest + R + 9, true)
          const steps = Object.keys(state).filter((key) => key.endsWith('.step')).length
          expect(`${what}: gradients of own parameters alone`, [sharded.own, steps < trained.length], [steps, R > 1])
        }
        // a whole state, of which each rank keeps its part
        sharded.optimizer.loadStateDict(all)
        expect(`${what}: own part of a whole state`, Object.keys(sharded.optimizer.stateDict()), Object.keys(state))
        for (const { model, optimizer, parallel } of [plain, sharded, small]) {
          parallel.dispose()
          optimizer.dispose()
          model.dispose()
        }
      }
  group.destroy()
}

const codeOf = (fn) => {
  try {
    fn()
    return null
  } catch ({ code }) {
    return code
  }
}

/** What is refused, and steps that all ranks skip together. */
async function refusals() {
  const group = initProcessGroup()
  const { rank, size: R } = group
  const model = new Model()
  const parallel = dataParallel(model, group, { shardOptimizer: true })
  const optimizer = new AdamW(model.parameters())
  const input = [randn([2, 12, 16]), randn([2, 12, 3])]
  model.lossOf(...input).backward()
  for (const onNonFinite of ['throw', 'skip'])
    expect(
      `${onNonFinite} without a norm`,
      codeOf(() => optimizer.step({ onNonFinite })),
      R > 1 ? 'UNSUPPORTED' : null,
    )
  const before = Object.values(model.stateDict()).map(numbers)
  const skipped = optimizer.skipped
  // one number of one rank is not finite
  model.zeroGrad()
  model.lossOf(input[0].mul(rank === R - 1 ? Number.POSITIVE_INFINITY : 1), input[1]).backward()
  const norm = parallel.clipGradNorm(1)
  expect('skips', [optimizer.step({ onNonFinite: 'skip', norm }), optimizer.skipped], [false, skipped + 1])
  expect('all parameters as before', Object.values(model.stateDict()).map(numbers), before)
  expect(
    'throws',
    codeOf(() => optimizer.step({ onNonFinite: 'throw', norm })),
    'NON_FINITE',
  )
  // gradients of all ranks and of one do not mix
  const own = model.parameters().some(({ grad }) => grad)
  const mixes = codeOf(() => parallel.noSync(() => model.lossOf(...input).backward()))
  expect('noSync after an exchange', mixes, own ? 'UNSUPPORTED' : null)
  parallel.dispose()
  model.zeroGrad()
  model.lossOf(...input).backward()
  expect(
    'disposed: throws by itself',
    codeOf(() => optimizer.step({ onNonFinite: 'throw' })),
    null,
  )
  group.destroy()
}

/** Gradients of two exchanges without zeroGrad add up, whatever the reduction and whoever updates. */
async function twice() {
  const group = initProcessGroup()
  const { rank } = group
  manualSeed(100 + rank)
  const input = [randn([2, 12, 16]), randn([2, 12, 3])]
  for (const reduction of ['mean', 'sum'])
    for (const shardOptimizer of [false, true]) {
      manualSeed(5)
      const model = new Model()
      const parallel = dataParallel(model, group, { reduction, shardOptimizer })
      const gradients = () => Object.entries(model.gradDict()).map(([key, x]) => [key, numbers(x)])
      model.lossOf(...input).backward()
      const once = gradients()
      model.lossOf(...input).backward()
      for (const [i, [key, x]] of gradients().entries())
        near(
          `${reduction}, ${shardOptimizer}: twice d ${key}`,
          x,
          once[i][1].map((value) => 2 * value),
          1e-6,
        )
      parallel.dispose()
    }
  group.destroy()
}

/** The state of one optimizer on all ranks is that of one process, and memory stays flat. */
async function flat() {
  const group = initProcessGroup()
  const model = new Model()
  dataParallel(model, group, { shardOptimizer: true })
  const optimizer = new AdamW(model.parameters())
  const input = [randn([2, 12, 16]), randn([2, 12, 3])]
  const step = () =>
    scope(() => {
      optimizer.zeroGrad()
      model.lossOf(...input).backward()
      optimizer.step()
    })
  for (let i = 0; i < 5; i++) step()
  const before = memory().liveBytes
  for (let i = 0; i < 300; i++) step()
  expect('bytes after 300 steps', memory().liveBytes, before)
  group.destroy()
}

await runJob({ steps, refusals, twice, flat })
