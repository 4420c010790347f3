// Trains for some steps, from a checkpoint where one is given, and prints the loss of each step and a hash of all
// parameters. Every step samples random numbers: dropout, noise, routing.
// Arguments: steps, file to start from or '-', file to save to or '-', optimizer, threads.
import { createHash } from 'node:crypto'
import * as st from '../../dist/index.js'

const [, , steps, from, to, kind, threads] = process.argv
st.setNumThreads(Number(threads))
st.manualSeed(31)
class Model extends st.Module {
  embed = new st.Embedding(17, 12)
  drop = new st.Dropout(0.2)
  attend = new st.CausalSelfAttention(12, { heads: 3 })
  block = new st.SparseMoEBlock(new st.MoE({ dim: 12, numExperts: 5, noiseGates: true }), { addFfBefore: true })
  head = new st.Linear(12, 17)
  forward(tokens) {
    const x = this.drop.forward(this.embed.forward(tokens))
    const { outputs, totalAuxLoss } = this.block.forward(x.add(this.attend.forward(x)))
    return [this.head.forward(outputs), totalAuxLoss]
  }
}
const model = new Model()
const optimizer =
  kind === 'AdamW'
    ? new st.AdamW(model.parameters(), { lr: 1e-2 })
    : new st.SGD(model.parameters(), { lr: 0.1, momentum: 0.9, weightDecay: 1e-3 })
let { step, extra } =
  from === '-'
    ? { step: 0, extra: { position: 5 } }
    : await st.loadCheckpoint(from, { model, optimizer, generator: st.defaultGenerator })
let { position } = extra
for (const end = step + Number(steps); step < end; step++) {
  const loss = st.scope(() => {
    const tokens = st.tensor(
      Int32Array.from({ length: 24 }, (_, i) => (position + i * i) % 17),
      [2, 12],
    )
    const [logits, aux] = model.forward(tokens)
    const loss = st.crossEntropy(logits, tokens).add(aux)
    optimizer.zeroGrad()
    loss.backward()
    st.clipGradNorm(model.parameters(), 1)
    optimizer.step()
    return loss.item()
  })
  position += 3
  console.log(step, loss)
}
if (to !== '-') await st.saveCheckpoint(to, { model, optimizer, step, extra: { position } })
const hash = createHash('sha256')
for (const entry of Object.values(model.stateDict())) hash.update(entry.dataSync())
console.log(hash.digest('hex'))
