// Prints what one forward and one backward of the layer do on the GPU: kernels, GEMMs, copies, waits. The emulator
// writes each down in the file SIMT_TRACE.
import { readFileSync } from 'node:fs'
import {
  AdamW,
  captureStep,
  clipGradNorm,
  crossEntropy,
  MoE,
  noGrad,
  randn,
  scope,
  setDefaultDevice,
  zeros,
} from '../../dist/index.js'
import { Batches, CharacterTokenizer, LanguageModel, makeOptimizer, TrainStep } from '../../dist/language-model.js'

const lines = () => readFileSync(process.env.SIMT_TRACE, 'utf8').split('\n').slice(0, -1)

function counted(fn) {
  const before = lines().length
  const value = fn()
  const counts = {}
  for (const line of lines().slice(before)) counts[line] = (counts[line] ?? 0) + 1
  return { value, counts }
}

const report = []
for (const computeDtype of ['f32', 'bf16', 'f16']) {
  const moe = new MoE({ dim: 16, numExperts: 4, noiseGates: true, computeDtype, device: 'cuda' })
  const optimizer = new AdamW(moe.parameters())
  const x = randn([2, 9, 16], { device: 'cuda', requiresGrad: true })
  const gradient = randn([2, 9, 16], { device: 'cuda' })
  for (const training of [true, false]) {
    moe.train(training)
    // Twice: a step makes the copies of weights that the next one finds, unless an optimizer ran in between.
    for (const copies of [false, true]) {
      scope(() => {
        const name = `${computeDtype}, ${training ? 'training' : 'evaluation'}${copies ? ', copies of the weights are there' : ''}`
        x.grad = null
        moe.zeroGrad() // a sum of gradients is a kernel for each of them
        const { value, counts: forward } = counted(() => moe.forward(x))
        const { counts: backward } = counted(() => value.outputs.backward(gradient))
        report.push({ name, forward, backward })
      })
    }
    scope(() => {
      const forwards = [1, 2].map(() => scope(() => counted(() => noGrad(() => moe.forward(x))).counts))
      const forward = forwards[1]
      report.push({ name: `${computeDtype}, no gradients`, forward, backward: {} })
    })
    optimizer.step()
  }
}

// Uneven loads: the sizes of the experts' groups come to the host once, and then cuBLAS has them.
const uneven = []
for (const [name, options, shape] of [
  ['dropless', { dropless: true }, [2, 9, 16]],
  ['dropless, bf16', { dropless: true, computeDtype: 'bf16' }, [2, 9, 16]],
  ['dropless, many experts', { dropless: true, numExperts: 20 }, [2, 9, 16]],
  ['decoding', {}, [3, 1, 16]],
]) {
  const moe = new MoE({ dim: 16, numExperts: 8, device: 'cuda', ...options })
  const x = randn(shape, { device: 'cuda', requiresGrad: true })
  scope(() => {
    moe.forward(x) // waits for the copies of the parameters, too
    const { value, counts: forward } = counted(() => moe.forward(x))
    const { counts: backward } = counted(() => value.outputs.sum().backward())
    const [experts, kept] = [value.routing.expertIndex, value.routing.kept].map((list) => list.dataSync())
    const busy = new Set(experts.filter((_, i) => kept[i])).size
    uneven.push({ name, forward, backward, busy })
  })
}

// A training step of a model with the layers and tensors of the demo's.
const tokenizer = CharacterTokenizer.of('abcdefgh')
const model = new LanguageModel({ tokenizer, context: 16, dim: 16, heads: 2, layers: 3, experts: 8 }).to('cuda')
const trainer = new AdamW(model.parameters())
const tokens = zeros([8, 16], { dtype: 'i32', device: 'cuda' })
const train = () =>
  scope(() => {
    trainer.zeroGrad()
    const { logits, routed } = model.forward(tokens)
    routed.reduce((sum, { totalAuxLoss }) => sum.add(totalAuxLoss), crossEntropy(logits, tokens)).backward()
    clipGradNorm(model.parameters(), 1, { wait: false })
    trainer.step()
  })
for (let i = 0; i < 3; i++) train() // makes the state of the optimizer, and finds all memory
const { counts: training } = counted(train)

// The same as a captured step of the trainer.
setDefaultDevice('cuda')
trainer.zeroGrad()
const trainStep = new TrainStep(model, makeOptimizer(model, 1e-3))
const batches = new Batches(tokenizer.encode('abcdefgh'.repeat(20)), { seed: 1, context: 16, batch: 8 })
for (const i of [0, 1]) trainStep.run(batches.at(i))
const { counts: trained } = counted(() => trainStep.run(batches.at(2)))

const weights = randn([16], { device: 'cuda', requiresGrad: true })
weights.square().sum().backward() // captured, a gradient is added to the one that is there
const step = captureStep(() => weights.mul(weights).sum().backward(), { device: 'cuda' })
step.replay()
step.replay()
const replay = counted(() => step.replay()).counts
console.log(JSON.stringify({ report, uneven, training, trained, replay }))
