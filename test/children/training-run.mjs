// Trains a small block for as many steps as the argument says on each number of threads, in the main thread and in a
// worker, and prints the SHA-256 of all parameters of each run as JSON.
import { createHash } from 'node:crypto'
import { isMainThread, parentPort, Worker } from 'node:worker_threads'
import {
  AdamW,
  CausalSelfAttention,
  Dropout,
  devices,
  Module,
  MoE,
  manualSeed,
  mseLoss,
  randn,
  SoftMoE,
  SparseMoEBlock,
  scope,
  setNumThreads,
} from '../../dist/index.js'

const steps = Number(process.argv[2])

class Net extends Module {
  attend = new CausalSelfAttention(48, { heads: 4 })
  dropout = new Dropout(0.1)
  soft = new SoftMoE({ dim: 48, numExperts: 3, numSlots: 9, dropout: 0.1 })
  block = new SparseMoEBlock(new MoE({ dim: 48, numExperts: 6, gatingTopN: 3, noiseGates: true }), {
    addFfBefore: true,
    addFfAfter: true,
  })
  forward(x) {
    const y = this.dropout.forward(this.attend.forward(x).add(x))
    return this.block.forward(this.soft.forward(y, { addNoise: true }).add(y))
  }
}

function train(threads) {
  setNumThreads(threads)
  manualSeed(11)
  const net = new Net()
  const optimizer = new AdamW(net.parameters(), { lr: 3e-3 })
  const [x, y] = [randn([3, 96, 48]), randn([3, 96, 48])]
  for (let i = 0; i < steps; i++) {
    scope(() => {
      const { outputs, totalAuxLoss } = net.forward(x)
      optimizer.zeroGrad()
      mseLoss(outputs, y).add(totalAuxLoss).backward()
      optimizer.step()
    })
  }
  const hash = createHash('sha256')
  scope(() => {
    for (const [name, value] of Object.entries(net.stateDict())) hash.update(name).update(value.dataSync())
  })
  return hash.digest('hex')
}

const runs = () => Object.fromEntries([1, 2, 3].map((threads) => [threads, train(threads)]))

if (isMainThread) {
  const main = runs()
  const worker = await new Promise((resolve, reject) => {
    new Worker(new URL(import.meta.url), { argv: process.argv.slice(2) }).once('message', resolve).once('error', reject)
  })
  console.log(JSON.stringify({ variant: devices()[0].variant, main, worker }))
} else {
  parentPort.postMessage(runs())
}
