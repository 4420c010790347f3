// Ends of workers and of the process, one scenario per run. The main thread loads the package only where it computes.
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'

const long = process.env.ST_MOE_TEST_LONG === '1' // before a release
const load = () => import('../../dist/index.js')
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
const start = (task) => new Worker(new URL(import.meta.url), { workerData: task })
const ended = (worker) => new Promise((resolve) => worker.once('exit', resolve))
const message = (worker) =>
  new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject).once('exit', reject))

/** Training steps on 2 threads; `each` runs after every step. */
async function train(steps, each = () => {}) {
  const { AdamW, manualSeed, MoE, mseLoss, randn, scope, setNumThreads } = await load()
  setNumThreads(2)
  manualSeed(5)
  const moe = new MoE({ dim: 32, numExperts: 4 })
  const optimizer = new AdamW(moe.parameters())
  const x = randn([2, 64, 32])
  let loss = 0
  for (let i = 0; i < steps; i++) {
    loss = scope(() => {
      const { outputs, totalAuxLoss } = moe.forward(x)
      const value = mseLoss(outputs, x).add(totalAuxLoss)
      optimizer.zeroGrad()
      value.backward()
      optimizer.step()
      return value.item()
    })
    each(i, { moe, x })
  }
  return loss
}

/** Asynchronous steps that take a while. */
async function trainAsync(steps, each = () => {}) {
  const { randn, setNumThreads, trainStepAsync } = await load()
  setNumThreads(2)
  const a = randn([500, 500])
  let sum = 0
  for (let i = 0; i < steps; i++) {
    const step = trainStepAsync(() => a.matmul(a).matmul(a).mean())
    await each(i)
    const mean = await step
    sum += Math.abs(mean.item())
    mean.dispose()
  }
  return sum
}

const tasks = {
  foreverAsync: () => trainAsync(Infinity, (i) => i === 0 && parentPort.postMessage('computing')),
  forever: () => train(Infinity, (i) => i === 0 && parentPort.postMessage('computing')),
  some: async () => parentPort.postMessage(await train(30)),
  /** Large calls, so that a termination arrives while native code runs. */
  large: async () => {
    const { matmul, randn, setNumThreads } = await load()
    setNumThreads(2)
    const a = randn([700, 700])
    parentPort.postMessage('computing')
    for (;;) matmul(a, a).dispose()
  },
  exit: () => train(10, (i) => i === 3 && process.exit(9)),
  throws: async () => (await load()).zeros([-1]),
  receives: async () => {
    const { ones, Tensor } = await load()
    try {
      ones([2]).add(workerData.tensor)
    } catch (error) {
      parentPort.postMessage([error.code, workerData.tensor instanceof Tensor])
    }
  },
}

const scenarios = {
  /** Workers terminated in mid-call, four at a time. */
  async terminate() {
    const codes = new Set()
    const one = async (i) => {
      const worker = start({ task: ['forever', 'large', 'foreverAsync'][i % 3] })
      await message(worker)
      await sleep(i % 7)
      codes.add(await worker.terminate())
    }
    for (let i = 0; i < (long ? 100 : 24); i += 4) await Promise.all([i, i + 1, i + 2, i + 3].map(one))
    return [...codes]
  },

  async exitInStep() {
    await train(5, (i, { moe, x }) => {
      if (i < 2) return
      const { outputs } = moe.forward(x)
      outputs.registerHook(() => process.exit(7))
      outputs.sum().backward()
    })
  },

  async exitInAsyncStep() {
    await trainAsync(5, (i) => i === 2 && sleep(1).then(() => process.exit(8)))
  },

  /** The event loop has nothing else to do. */
  async naturalAsync() {
    return (await trainAsync(5)) > 0
  },

  /** The process ends although a step has begun that nobody awaits. */
  async abandoned() {
    void trainAsync(1)
    return 1
  },

  async exitWhileWorkersCompute() {
    const workers = [start({ task: 'forever' }), start({ task: 'large' }), start({ task: 'foreverAsync' })]
    await Promise.all(workers.map(message))
    await train(2)
    process.exit(3)
  },

  /** Nothing keeps the process alive but work that ends. */
  async natural() {
    await train(5)
    const worker = start({ task: 'some' })
    const loss = await message(worker)
    return [loss > 0, await ended(worker)]
  },

  async together() {
    const workers = [start({ task: 'some' }), start({ task: 'some' })]
    const losses = await Promise.all([train(30), ...workers.map(message)])
    return [losses.every((loss) => loss === losses[0]), losses[0] > 0]
  },

  /** Only workers load the addon, one after another. */
  async cycles() {
    const codes = new Set()
    let before = 0
    for (let i = 0; i < (long ? 40 : 15); i++) {
      const worker = start({ task: 'some' })
      const exit = ended(worker)
      await message(worker)
      codes.add(await exit)
      if (i === 9) before = process.memoryUsage.rss()
    }
    // A sanitizer holds on to freed memory.
    const flat = process.env.ST_MOE_TEST_SANITIZED === '1' || process.memoryUsage.rss() - before < 100e6
    return [...codes, flat]
  },

  async exitInWorker() {
    const code = await ended(start({ task: 'exit' }))
    return [code, (await train(2)) > 0]
  },

  async errorInWorker() {
    const worker = start({ task: 'throws' })
    const error = await new Promise((resolve) => worker.once('error', resolve))
    return [error instanceof Error, error.code, await ended(worker)]
  },

  /** A tensor belongs to its environment: a message carries no handle. */
  async messages() {
    const { ones } = await load()
    const tensor = ones([2])
    let refused
    try {
      start({ task: 'receives', tensor })
    } catch (error) {
      refused = error.name
    }
    const answer = await message(start({ task: 'receives', tensor: { shape: tensor.shape, dtype: tensor.dtype } }))
    return [refused, ...answer, tensor.sum().item()]
  },
}

if (isMainThread) {
  const result = await scenarios[process.argv[2]]()
  console.log(JSON.stringify(result))
} else {
  await tasks[workerData.task]()
}
