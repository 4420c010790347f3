// A rank of a job that saves and loads checkpoints together, in a folder of the command line.
import fs, { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import path from 'node:path'
import {
  Adafactor,
  AdamW,
  CosineSchedule,
  checkpointProgress,
  dataParallel,
  EMA,
  FeedForward,
  Generator,
  initProcessGroup,
  Linear,
  loadCheckpoint,
  Module,
  MoE,
  manualSeed,
  randn,
  Sequential,
  SGD,
  SoftMoE,
  saveCheckpoint,
  scope,
} from '../../dist/index.js'
import { all, expect, near, numbers, range, runJob } from './checks.mjs'

const folder = process.argv[3]
const D = 8

class Model extends Module {
  constructor(make, share) {
    super()
    this.first = new Linear(D, D)
    this.layer = make(share)
    this.head = new Linear(D, 2)
  }
  lossOf(x, target) {
    const result = this.layer.forward(this.first.forward(x))
    const { outputs, totalAuxLoss } = result.outputs ? result : { outputs: result }
    const loss = this.head.forward(x.add(outputs)).sub(target).square().mean()
    return totalAuxLoss ? loss.add(totalAuxLoss) : loss
  }
}

const moe = (options) => (share) => new MoE({ dim: D, numExperts: 4, ...all, ...options, ...share })
const layers = {
  experts: moe({}),
  'five experts': moe({ numExperts: 5, activation: 'swiglu' }),
  replicas: moe({ numExperts: 2 }),
  'two levels': moe({ numExperts: [2, 3] }),
  'own experts': (share) =>
    new MoE({ dim: D, numExperts: 3, ...all, experts: range(3, () => new FeedForward(D)), ...share }),
  soft: (share) => new SoftMoE({ dim: D, numExperts: 4, numSlots: 2, ...share }),
}
const optimizers = { AdamW: (p) => new AdamW(p, { lr: 0.01 }), SGD: (p) => new SGD(p, { lr: 0.1, momentum: 0.9 }) }

/** A step has 12 batches, which 1, 2, 3 or 4 ranks divide. */
const parts = 12
const batch = (i, k) => {
  const generator = new Generator(1000 * i + k)
  return [randn([1, 6, D], { generator }), randn([1, 6, 2], { generator })]
}

function made(group, { layer, optimizer, shardOptimizer, experts }) {
  manualSeed(5)
  const shared = experts && group.size > 1 ? { processGroup: group } : {}
  const model = new Model(layers[layer], shared)
  const parallel = dataParallel(model, group, { shardOptimizer, reduction: 'sum' })
  const optimizers_ = optimizers[optimizer](model.parameters())
  return {
    targets: {
      model,
      optimizer: optimizers_,
      schedule: new CosineSchedule(optimizers_, { steps: 100 }),
      ema: new EMA(model),
    },
    parallel,
  }
}

/** Steps from `first` to `last`, each over all batches; returns the sums of the losses of this rank. */
function train(group, { parallel, targets: { model, optimizer, schedule, ema } }, first, last) {
  const { rank, size } = group
  const losses = []
  for (let i = first; i < last; i++)
    scope(() => {
      schedule.moveTo(i)
      optimizer.zeroGrad()
      const own = parts / size
      let sum = 0
      const backward = (k) => {
        const loss = model.lossOf(...batch(i, rank * own + k)).mul(1 / parts)
        loss.backward()
        sum += loss.item()
      }
      parallel.noSync(() => {
        for (let k = 1; k < own; k++) backward(k)
      })
      backward(0)
      optimizer.step()
      ema.update()
      losses.push(sum)
    })
  return losses
}

/** The parameters, and their averages. */
function stateOf({ targets: { model, ema } }) {
  const entries = (ending) => Object.entries(model.stateDict()).map(([key, x]) => [key + ending, numbers(x)])
  return [...entries(''), ...ema.use(() => entries(', average'))]
}

const cases = Object.keys(layers).flatMap((layer, i) =>
  (i === 0 ? [false, true] : [true]).flatMap((experts) =>
    [false, true].map((shardOptimizer) => ({
      layer,
      experts,
      shardOptimizer,
      optimizer: shardOptimizer && experts ? 'SGD' : 'AdamW',
    })),
  ),
)
const placeOf = (options) => path.join(folder, Object.values(options).join('-').replaceAll(' ', '-'))

/** The bytes of the tensors in a file. */
const dataIn = (file) => {
  const bytes = readFileSync(file)
  return bytes.length - 8 - Number(bytes.readBigUInt64LE(0))
}

/** Trains three steps and saves; trains two more and tells its state. */
async function save() {
  const group = initProcessGroup()
  for (const options of cases) {
    const run = made(group, options)
    const place = placeOf(options)
    await saveCheckpoint(place, { ...run.targets, step: 1, group })
    train(group, run, 0, 3)
    await saveCheckpoint(place, { ...run.targets, step: 3, extra: { note: 'ü' }, group }, { metadata: { text: 'a' } })
    const files = readdirSync(place)
    expect(`${place}: files`, files.length, group.size + 1)
    const bytes = files.filter((name) => name.endsWith('.safetensors')).map((name) => dataIn(path.join(place, name)))
    const index = JSON.parse(readFileSync(path.join(place, 'checkpoint.safetensors.index.json'), 'utf8'))
    const total = bytes.reduce((sum, each) => sum + each, 0)
    expect(`${place}: each tensor once`, total, index.metadata.total_size)
    if (options.layer === 'experts' && !options.shardOptimizer)
      expect(`${place}: as much of each rank`, Math.max(...bytes) < (1.3 * total) / group.size, true)
    expect(`${place}: progress`, await checkpointProgress(place), {
      step: 3,
      extra: { note: 'ü' },
      metadata: { text: 'a' },
    })
    if (group.size === 1)
      await saveCheckpoint(`${place}.safetensors`, { ...run.targets, step: 3, extra: { note: 'ü' } })
    const losses = train(group, run, 3, 5)
    const state = stateOf(run)
    writeFileSync(`${place}.${group.size}.${group.rank}.json`, JSON.stringify({ losses, state }))
    run.parallel.dispose()
  }
  group.destroy()
}

/** Goes on from what any number of ranks has saved, in any number of ranks. */
async function load() {
  const group = initProcessGroup()
  for (const options of cases)
    for (const ending of ['', '.safetensors']) {
      const place = placeOf(options) + ending
      if (!existsSync(place)) continue
      const run = made(group, options)
      const isRefused =
        ending && options.experts && group.size > 1 && ['two levels', 'own experts'].includes(options.layer)
      let progress
      try {
        progress = await loadCheckpoint(place, run.targets)
      } catch (error) {
        expect(`${place}: refused ${error.message}`, [isRefused, error.code], [true, 'STATE_DICT'])
        run.parallel.dispose()
        continue
      }
      expect(`${place}: loads`, isRefused || false, false)
      expect(`${place}: step`, progress.step, 3)
      const losses = train(group, run, 3, 5)
      const saved = readdirSync(folder).filter(
        (name) => name.startsWith(`${path.basename(placeOf(options))}.`) && name.endsWith('.json'),
      )
      const told = saved.map((name) => JSON.parse(readFileSync(path.join(folder, name), 'utf8')))
      const whole = Object.fromEntries(told.flatMap(({ state }) => state))
      for (const [key, x] of stateOf(run)) near(`${place}: ${key}`, x, whole[key], 2e-5)
      expect(`${place}: losses`, losses.every(Number.isFinite), true)
      run.parallel.dispose()
    }
  group.destroy()
}

const codeOf = async (promise) => {
  try {
    await promise
    return null
  } catch ({ code, message }) {
    return `${code} ${message}`
  }
}

/** Errors of one rank are those of all, and the checkpoint before stays. */
async function refusals() {
  const group = initProcessGroup()
  const { rank, size } = group
  const last = size - 1
  const model = new Linear(3, 2)
  dataParallel(model, group)
  const optimizer = new AdamW(model.parameters())
  const save = (more) => codeOf(saveCheckpoint(folder, { model, optimizer, step: 7, group, ...more }))
  expect('saves', await save(), null)
  const before = readdirSync(folder).sort()
  const shown = (text) => text && /^\w+/.exec(text)[0]
  const bad = await save(rank === last ? { step: -1 } : {})
  expect('one rank is wrong', [shown(bad), rank === last || bad.includes(`rank ${last} failed`)], ['OPTION', true])
  expect('the files stay', readdirSync(folder).sort(), before)
  // the folder of one rank is a file
  const file = path.join(
    folder,
    before.find((name) => name.endsWith('.safetensors')),
  )
  const other = await codeOf(saveCheckpoint(rank === last ? path.join(file, 'x') : folder, { model, step: 8, group }))
  expect('one rank cannot write', shown(other), 'FILE_SYSTEM')
  group.barrier()
  expect('the files stay after that', readdirSync(folder).sort(), before)
  expect(
    'no optimizer of another model',
    shown(await save({ optimizer: new AdamW(new Linear(3, 2).parameters()) })),
    size > 0 ? 'OPTION' : null,
  )
  expect('no group', shown(await save({ group: 3 })), 'OPTION')
  expect('loads', (await loadCheckpoint(folder, { model, optimizer })).step, 7)
  const moe = new MoE({ dim: 4, numExperts: 4, ...all, processGroup: group })
  const adafactor = new Adafactor(moe.parameters())
  scope(() =>
    moe
      .forward(randn([1, 6, 4]))
      .outputs.square()
      .mean()
      .backward(),
  )
  adafactor.step()
  const mixed = await codeOf(saveCheckpoint(folder, { model: moe, optimizer: adafactor, step: 9, group }))
  expect('a state that mixes experts', [shown(mixed), mixed.includes('exp_avg_sq_row')], ['UNSUPPORTED', true])
  if (size > 1) {
    const alone = await codeOf(saveCheckpoint(path.join(folder, 'alone'), { model: moe, step: 9 }))
    expect('a rank alone', [shown(alone), existsSync(path.join(folder, 'alone'))], ['OPTION', false])
  }
  group.barrier()
  if (rank === 0) {
    const index = path.join(folder, 'checkpoint.safetensors.index.json')
    const text = readFileSync(index, 'utf8')
    for (const [wrong, code] of [
      ['{', 'FILE_FORMAT'],
      ['null', 'FILE_FORMAT'],
      ['{"metadata":{},"weight_map":{}}', 'FILE_FORMAT'],
      [text.replaceAll(/checkpoint-\w+-\d+-of-\d+\.safetensors/g, '../x'), 'FILE_FORMAT'],
      [text.replaceAll(/checkpoint-\w+-(\d+-of-\d+)/g, 'checkpoint-00000000-$1'), 'FILE_SYSTEM'],
      [text.replace('model.bias', 'model.bios'), 'STATE_DICT'],
    ]) {
      writeFileSync(index, wrong)
      const weight = numbers(model.weight)
      expect(`index ${wrong.slice(0, 9)}`, shown(await codeOf(loadCheckpoint(folder, { model, optimizer }))), code)
      expect('nothing changed', numbers(model.weight), weight)
    }
    writeFileSync(index, text)
    expect('an empty folder', shown(await codeOf(loadCheckpoint(path.dirname(folder), { model }))), 'FILE_SYSTEM')
  }
  group.destroy()
}

/** A rank reads the model, and of a state that ranks share out its own part. */
async function reads() {
  const group = initProcessGroup()
  const model = new Sequential(...range(6, () => new Linear(64, 64)))
  dataParallel(model, group, { shardOptimizer: true })
  const optimizer = new AdamW(model.parameters())
  scope(() =>
    model
      .forward(randn([4, 64]))
      .square()
      .mean()
      .backward(),
  )
  optimizer.step()
  await saveCheckpoint(folder, { model, optimizer, step: 1, group })
  let bytes = 0
  const real = fs.read
  fs.read = (...args) => {
    bytes += args[3]
    return real(...args)
  }
  syncBuiltinESMExports()
  await loadCheckpoint(folder, { model, optimizer })
  const weights = 6 * 65 * 64 * 4
  const most = weights + (2 * weights) / group.size + 40_000 // headers, and the bytes of small tensors between
  expect(`read ${bytes} bytes`, bytes > weights && bytes < most, true)
  group.destroy()
}

/** Rank `process.argv[4]` is killed in the save of step 2, at a call of the file system of which it is number `argv[6]`. */
async function killed() {
  const group = initProcessGroup()
  const [victim, name, at] = process.argv.slice(4)
  const model = new Linear(3, 2)
  const save = (step) => codeOf(saveCheckpoint(folder, { model, step, group }))
  expect('the first save', await save(1), null)
  let calls = 0
  const real = fs[name]
  if (group.rank === Number(victim))
    fs[name] = (...args) => {
      if (++calls === Number(at)) process.kill(process.pid, 'SIGKILL')
      else return real(...args)
    }
  syncBuiltinESMExports()
  const code = await save(2)
  expect('the save of the others', [/^\w+/.exec(code)[0], code.includes(`rank ${victim}`)], ['PEER_LOST', true])
}

await runJob({ save, load, refusals, reads, killed })
