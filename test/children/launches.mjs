// Prints what one forward and one backward of the layer do on the GPU: kernels, GEMMs, copies, waits. The emulator
// writes each down in the file SIMT_TRACE.
import { readFileSync } from 'node:fs'
import { AdamW, captureStep, MoE, noGrad, randn, scope } from '../../dist/index.js'

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
    scope(() => {
      // Twice: a step makes the copies of weights that the next one finds, unless an optimizer ran in between.
      for (const copies of [false, true]) {
        const name = `${computeDtype}, ${training ? 'training' : 'evaluation'}${copies ? ', copies of the weights are there' : ''}`
        x.grad = null
        moe.zeroGrad() // a sum of gradients is a kernel for each of them
        const { value, counts: forward } = counted(() => moe.forward(x))
        const { counts: backward } = counted(() => value.outputs.backward(gradient))
        report.push({ name, forward, backward })
      }
      report.push({
        name: `${computeDtype}, no gradients`,
        forward: counted(() => noGrad(() => moe.forward(x))).counts,
        backward: {},
      })
    })
    optimizer.step()
  }
}

// Uneven loads: the sizes of the experts' groups come to the host once, and then cuBLAS has them.
const uneven = []
for (const [name, options, shape] of [
  ['dropless', { dropless: true }, [2, 9, 16]],
  ['dropless, bf16', { dropless: true, computeDtype: 'bf16' }, [2, 9, 16]],
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

const weights = randn([16], { device: 'cuda', requiresGrad: true })
weights.square().sum().backward() // captured, a gradient is added to the one that is there
const step = captureStep(() => weights.mul(weights).sum().backward(), { device: 'cuda' })
step.replay()
step.replay()
const replay = counted(() => step.replay()).counts
console.log(JSON.stringify({ report, uneven, replay }))
