// Training steps on a GPU that has no more memory from the first, second, third … allocation on, until a step ends
// well. Prints how many failed and what was wrong then: another error, memory that is not given back, a changed weight.
import { AdamW, captureStep, MoE, MoeError, manualSeed, memory, randn, scope } from '../../dist/index.js'

const bits = (x) => Buffer.from(x.dataSync().buffer).toString('hex')
const used = () => {
  const { tensors, bytes } = memory().devices['cuda:0']
  return `${tensors} tensors, ${bytes} bytes`
}
let failures = 0
const wrong = []

/** Runs `fn` with ever more memory until it ends well; `state` must be the same after each failure. */
function untilItFits(name, fn, state) {
  for (let n = 1; n < 1000; n++) {
    const before = state()
    process.env.SIMT_FULL_AT = String(n)
    let error
    let value
    try {
      value = fn()
    } catch (caught) {
      error = caught
    }
    delete process.env.SIMT_FULL_AT
    if (error === undefined) return value
    failures++
    if (!(error instanceof MoeError && error.code === 'OUT_OF_MEMORY')) wrong.push(`${name} ${n}: ${error}`)
    else if (!/^\[[\w.]+\] not enough memory on cuda.* \d+ bytes/.test(error.message))
      wrong.push(`${name} ${n}: ${error.message}`)
    if (state() !== before) wrong.push(`${name} ${n}: ${before.slice(0, 60)} before, ${state().slice(0, 60)} after`)
  }
  wrong.push(`${name} never fits`)
}

manualSeed(3)
const moe = new MoE({ dim: 8, numExperts: 4, noiseGates: true, computeDtype: 'bf16', device: 'cuda' })
const parameters = [...moe.parameters()]
const optimizer = new AdamW(parameters)
const x = randn([2, 6, 8], { device: 'cuda' })
const step = () => {
  optimizer.zeroGrad()
  const { outputs, totalAuxLoss } = moe.forward(x)
  const loss = outputs.square().mean().add(totalAuxLoss)
  loss.backward()
  optimizer.step()
  return loss
}
/** Without what a step that fails may leave behind: gradients, and states of the optimizer that count nothing yet. */
const state = () => {
  optimizer.zeroGrad()
  scope(() => {
    const { '0.step': count } = optimizer.stateDict()
    if (count?.item() === 0) optimizer.dispose()
    moe.eval().forward(x) // creates the copies of the weights
    moe.train()
  })
  return `${used()} ${parameters.map(bits).join()}`
}
untilItFits('step', () => scope(() => step().item()), state)
const captured = untilItFits('captureStep', () => captureStep(step, { device: 'cuda' }), state)
const loss = untilItFits(
  'replay',
  () => captured.replay().item(),
  () => '',
)
console.log(JSON.stringify({ failures, wrong, loss }))
