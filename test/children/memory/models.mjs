// A model and its optimizer for out-of-memory.mjs, as the cases of ops.mjs: state, gradients, steps, files.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as st from '../../../dist/index.js'
import { bits, dictBits, freeDict, gradBits } from './bits.mjs'
import { layer, plain } from './ops.mjs'

const { AdamW, MoE, randn, scope, SGD, tensor } = st
const folder = mkdtempSync(join(tmpdir(), 'st-moe-memory-'))
const file = join(folder, 'file')
process.on('exit', () => rmSync(folder, { recursive: true }))

class Model extends st.Module {
  constructor(options = {}) {
    super()
    this.embedding = new st.Embedding(11, 8)
    this.norm = new st.LayerNorm(8)
    this.attention = new st.CausalSelfAttention(8, { heads: 2 })
    this.block = new st.SparseMoEBlock(new MoE({ dim: 8, numExperts: 3, noiseGates: true, ...options }), {
      addFfBefore: true,
    })
    this.head = new st.Linear(8, 11)
  }

  forward(tokens) {
    const x = this.embedding.forward(tokens)
    const { outputs, totalAuxLoss } = this.block.forward(x.add(this.attention.forward(this.norm.forward(x))))
    return st.crossEntropy(this.head.forward(outputs), tokens).add(totalAuxLoss)
  }
}

class SmallModel extends st.Module {
  constructor() {
    super()
    this.embedding = new st.Embedding(11, 8)
    this.head = new st.Linear(8, 11)
  }

  forward(tokens) {
    return st.crossEntropy(this.head.forward(this.embedding.forward(tokens)), tokens)
  }
}

const tokens = () =>
  tensor(
    Int32Array.from({ length: 12 }, (_, i) => (i * 7) % 11),
    [2, 6],
  )
/** A model that has trained a step, its optimizer, and gradients of the next step. */
function trained({ steps = 1, grads = true, Optimizer = AdamW, Net = Model } = {}) {
  const model = new Net()
  const optimizer = new Optimizer(model.parameters(), { lr: 0.1, ...(Optimizer === SGD ? { momentum: 0.9 } : {}) })
  const input = tokens()
  const backward = () => scope(() => model.forward(input).backward())
  for (let i = 0; i < steps; i++) {
    backward()
    optimizer.step()
    optimizer.zeroGrad()
  }
  if (grads) backward()
  return {
    model,
    optimizer,
    input,
    state: () =>
      scope(() =>
        [dictBits(model.stateDict()), dictBits(optimizer.stateDict()), gradBits(model.parameters())].join('\n'),
      ),
    dispose: () => {
      for (const entry of [model, optimizer, input]) entry.dispose()
    },
  }
}

/** An operation on such a model, told apart by what it changes. */
const onModel =
  (options, run, rest = {}) =>
  () => {
    const world = trained(options)
    return { ...world, run: () => run(world), bits: world.state, ...rest }
  }
const dictOf = (options, make) => onModel(options, make, { bits: dictBits, free: freeDict })

export const steps = {
  stateDict: dictOf({}, ({ model }) => model.stateDict()),
  gradDict: dictOf({}, ({ model }) => model.gradDict()),
  'gradDict without gradients': dictOf({ grads: false }, ({ model }) => model.gradDict()),
  'Module.loadStateDict': () => {
    const [world, other] = [trained(), new Model()]
    const own = other.stateDict()
    const dict = Object.fromEntries(Object.entries(own).map(([name, value]) => [name, value.to('f64')])) // which needs copies
    freeDict(own)
    other.dispose()
    return {
      ...world,
      run: () => world.model.loadStateDict(dict),
      bits: world.state,
      dispose: () => {
        world.dispose()
        freeDict(dict)
      },
    }
  },
  'forward and backward': onModel(
    { grads: false },
    ({ model, input }) => scope(() => model.forward(input).backward()),
    {
      samples: true,
    },
  ),
  'a second backward into the gradients': onModel(
    {},
    ({ model, input }) => scope(() => model.forward(input).backward()),
    { samples: true },
  ),
  'backward alone, tried again': () => {
    const world = trained({ grads: false })
    const loss = scope(() => world.model.forward(world.input))
    return {
      ...world,
      run: () => loss.backward(),
      bits: world.state,
      dispose: () => {
        loss.dispose()
        world.dispose()
      },
    }
  },
  'backward with hooks': () => {
    const world = trained({ grads: false })
    const { model, input } = world
    model.block.registerFullBackwardHook((_, [grad]) => [grad.mul(2)])
    model.head.weight.registerHook((grad) => grad.mul(3))
    return {
      ...world,
      run: () => scope(() => model.forward(input).backward()),
      bits: world.state,
      samples: true,
    }
  },
  clipGradNorm: onModel({}, ({ model }) => st.clipGradNorm(model.parameters(), 0.01)),
  'AdamW.step, the first': onModel({ steps: 0 }, ({ optimizer }) => optimizer.step()),
  'AdamW.step': onModel({}, ({ optimizer }) => optimizer.step()),
  'SGD.step, the first': onModel({ steps: 0, Optimizer: SGD }, ({ optimizer }) => optimizer.step()),
  'SGD.step': onModel({ Optimizer: SGD }, ({ optimizer }) => optimizer.step()),
  'Adafactor.step, the first': onModel({ steps: 0, Optimizer: st.Adafactor }, ({ optimizer }) => optimizer.step()),
  'Adafactor.step': onModel({ Optimizer: st.Adafactor }, ({ optimizer }) => optimizer.step()),
  'a skipping step': onModel({}, ({ optimizer }) => optimizer.step({ onNonFinite: 'skip' })),
  'EMA.use': onModel({}, ({ model }) => {
    const ema = new st.EMA(model)
    try {
      ema.update()
      ema.use(() => {})
    } finally {
      ema.dispose()
    }
  }),
  'backward of a recomputed block': onModel(
    { grads: false },
    ({ model, input }) => scope(() => st.recompute(model, [input]).backward()),
    { samples: true, clear: ({ optimizer }) => optimizer.zeroGrad() },
  ),
  'Optimizer.stateDict': dictOf({}, ({ optimizer }) => optimizer.stateDict()),
  'Optimizer.loadStateDict': () => {
    const [world, other] = [trained({ Net: SmallModel }), trained({ Net: SmallModel, steps: 3 })]
    const dict = other.optimizer.stateDict()
    other.dispose()
    return {
      ...world,
      run: () => world.optimizer.loadStateDict(dict),
      bits: world.state,
      dispose: () => {
        world.dispose()
        freeDict(dict)
      },
    }
  },
  'a training step': onModel(
    { grads: false },
    ({ model, optimizer, input }) =>
      scope(() => {
        optimizer.zeroGrad()
        model.forward(input).backward()
        st.clipGradNorm(model.parameters(), 1)
        optimizer.step()
      }),
    { samples: true, clear: ({ optimizer }) => optimizer.zeroGrad() },
  ),
  'an asynchronous training step': onModel(
    { steps: 0, grads: false },
    ({ model, optimizer, input }) =>
      st.trainStepAsync(() => {
        optimizer.zeroGrad()
        model.forward(input).backward()
        st.clipGradNorm(model.parameters(), 1, { wait: false })
        optimizer.step()
      }),
    { samples: true },
  ),
  'an asynchronous step of several optimizers': onModel(
    { Net: SmallModel },
    async ({ model, optimizer, input }) => {
      const [ema, other] = [new st.EMA(model), new st.Adafactor(model.parameters())]
      try {
        await st.trainStepAsync(() => {
          model.forward(input).backward()
          st.clipGradNorm(model.parameters(), 1, { wait: false })
          for (const each of [optimizer, other, optimizer]) {
            each.step()
            ema.update()
          }
        })
      } finally {
        ema.dispose()
        other.dispose()
      }
    },
    { samples: true },
  ),
  forwardAsync: onModel({ grads: false }, ({ model, input }) => model.forwardAsync(input), {
    samples: true,
    bits: (loss) => bits(loss),
    free: (loss) => loss.dispose(),
  }),
  'a training step on two threads': () => {
    const world = steps['a training step']()
    const run = () => {
      st.setNumThreads(2)
      try {
        world.run()
      } finally {
        st.setNumThreads(1)
      }
    }
    return { ...world, run }
  },
  copyFrom: () => {
    const [target, source] = [randn([40]), st.ones([40], { dtype: 'f64' })]
    return {
      run: () => target.copyFrom(source),
      state: () => bits(target),
      bits: () => bits(target),
      dispose: () => freeDict([target, source]),
    }
  },
}

/** Only where there is another device than the CPU. */
export const moves = {
  'Module.to': () => {
    const world = trained()
    world.model.to('cpu')
    return { ...world, run: () => world.model.to(st.getDefaultDevice()), bits: world.state }
  },
}

/** What the folder of the files holds. */
const onDisk = () =>
  readdirSync(folder)
    .map((name) => `${name} ${readFileSync(join(folder, name)).toString('base64')}`)
    .join('\n')

/** Saves a model over an older file of it. */
const saving = (save) => () => {
  const [world, older] = [trained({ Net: SmallModel }), trained({ Net: SmallModel, steps: 2 })]
  rmSync(file, { force: true })
  scope(() => st.saveSafetensorsSync(file, older.model.stateDict()))
  older.dispose()
  const dict = world.model.stateDict()
  const state = () => [onDisk(), world.state()].join('\n')
  return {
    ...world,
    state,
    run: () => save({ ...world, dict }),
    bits: state,
    dispose: () => {
      freeDict(dict)
      world.dispose()
    },
  }
}

/** Loads what a model that has trained further has saved. */
const loading = (load, rest) => async () => {
  const [world, further] = [trained({ Net: SmallModel }), trained({ Net: SmallModel, steps: 3 })]
  const { model, optimizer } = further
  await st.saveCheckpoint(file, { model, optimizer, step: 3, extra: { position: 'x'.repeat(80) } })
  further.dispose()
  return { ...world, run: () => load(world), bits: world.state, ...rest }
}

const tensorsBits = { bits: ({ tensors }) => dictBits(tensors), free: ({ tensors }) => freeDict(tensors) }
export const files = {
  saveSafetensorsSync: saving(({ dict }) => st.saveSafetensorsSync(file, dict)),
  saveSafetensors: saving(({ dict }) => st.saveSafetensors(file, dict, { metadata: { text: 'x'.repeat(80) } })),
  saveCheckpoint: saving(({ model, optimizer }) => st.saveCheckpoint(file, { model, optimizer, step: 1 })),
  loadSafetensorsSync: loading(() => st.loadSafetensorsSync(file), tensorsBits),
  loadSafetensors: loading(() => st.loadSafetensors(file), tensorsBits),
  loadCheckpoint: loading(({ model, optimizer }) => st.loadCheckpoint(file, { model, optimizer })),
}

export const arrays = {
  forwardWithGrad: layer(
    () => new MoE({ dim: 8, numExperts: 3 }),
    (module) => {
      const step = module.forwardWithGrad(plain, [2, 6, 8])
      return { outputs: { dataSync: () => step.outputs }, dispose: () => step.dispose() }
    },
  ),
  'the backward of forwardWithGrad': () => {
    const moe = new MoE({ dim: 8, numExperts: 3 })
    const step = moe.forwardWithGrad(plain, [2, 6, 8])
    const state = () => scope(() => dictBits(moe.stateDict())) + gradBits(moe.parameters())
    return {
      run: () => step.backward(plain, 1),
      state,
      bits: ({ dInput }) => Buffer.from(dInput.buffer).toString('base64') + state(),
      dispose: () => {
        step.dispose()
        moe.dispose()
      },
    }
  },
}
