// Trains on the GPU until launch FAULT_AT faults; prints the first error, those of other calls on the GPU after it, and
// what the CPU still does.
import { AdamW, captureStep, MoE, manualSeed, ones, randn, scope, tensor, zeros } from '../../dist/index.js'

const caught = (fn) => {
  try {
    fn()
    return { name: 'none', code: '', message: ']' }
  } catch ({ name, code, message }) {
    return { name, code, message }
  }
}

/** A model and its training step. */
function training(device) {
  manualSeed(1)
  const moe = new MoE({ dim: 8, numExperts: 4, device })
  const optimizer = new AdamW(moe.parameters())
  const x = randn([2, 6, 8], { device })
  const step = () =>
    scope(() => {
      optimizer.zeroGrad()
      const { outputs, totalAuxLoss } = moe.forward(x)
      const loss = outputs.square().mean().add(totalAuxLoss)
      loss.backward()
      optimizer.step()
      return loss.item()
    })
  return { moe, x, step }
}

const before = training('cpu').step()
const { moe, x, step } = training('cuda')

process.env.SIMT_FAULT_AT = process.env.FAULT_AT
const first = caught(() => {
  for (let i = 0; i < 100; i++) step()
})
const later = [
  caught(() => zeros([2], { device: 'cuda' })),
  caught(() => tensor([1, 2], null, { device: 'cuda' })),
  caught(() => x.dataSync()),
  caught(() => moe.forward(x)),
  caught(() => ones([2]).to('cuda')),
  caught(() => x.copyFrom(new Float32Array(2 * 6 * 8))),
  caught(() => captureStep(() => moe.forward(x).outputs, { device: 'cuda' })),
  caught(step),
]
const cpu = Array.from(tensor([1, 2]).mul(2).dataSync())
const losses = [before, training('cpu').step()]
moe.dispose?.()
x.dispose()
console.log(JSON.stringify({ first, later, cpu, losses }))
