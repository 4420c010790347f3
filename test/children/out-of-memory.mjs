// Every operation below with its first, second, third … allocation failing, until none is left to fail. Prints for each how
// many points failed, and what was wrong then: another error than OUT_OF_MEMORY, memory that is not given back, a changed
// parameter, gradient, state or generator, another result of the next call. Arguments: the addon that makes allocations
// fail, the device, and words that the names of the operations to be tried have in them.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as st from '../../dist/index.js'
import { emptyCaches, modes, used, withFailing } from './failing-allocations.mjs'

const { AdamW, MoE, MoeError, noGrad, randn, scope, SGD, tensor } = st
const [device, ...words] = process.argv.slice(3)
const folder = mkdtempSync(join(tmpdir(), 'st-moe-memory-'))
const file = join(folder, 'file')

// ---- what there is to compare

const bits = (x) => (x ? Buffer.from(x.dataSync().buffer).toString('base64') : 'none')
const dictBits = (dict) =>
  Object.entries(dict)
    .map(([name, x]) => `${name} ${bits(x)}`)
    .join('\n')
const freeDict = (dict) => {
  for (const x of Object.values(dict)) x.dispose()
}
const gradBits = (parameters) => [...parameters].map(({ grad }) => bits(grad)).join()

// ---- the operations: each makes what it works on, and says what must stay the same when it fails

/** A function that makes something to be disposed. */
const making = (make, show) => () => ({ run: make, bits: show, free: (made) => made.dispose() })
const module = (make) => making(make, (made) => scope(() => dictBits(made.stateDict())))
const values = (make) => making(make, bits)

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
const x = (requiresGrad = false) => randn([2, 6, 8], { requiresGrad })

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

/** A call of a layer on x, with what it makes freed by nobody else. */
const layer = (make, call) => () => {
  const [module, input] = [make(), x(true)]
  return {
    run: () => call(module, input),
    state: () => scope(() => dictBits(module.stateDict())),
    bits: (y) => bits(y.outputs ?? y),
    free: (y) => y.dispose(),
    dispose: () => {
      module.dispose()
      input.dispose()
    },
  }
}

/** An op and its backward, on tensors that it gets from `inputs`. */
const op = (inputs, fn) => () => {
  const leaves = inputs()
  const own = Array.isArray(leaves) ? leaves : Object.values(leaves)
  return {
    run: () =>
      scope(() => {
        const y = fn(leaves)
        y.mul(y).sum().backward()
        return y
      }),
    state: () => own.map((leaf) => `${bits(leaf)} ${bits(leaf.grad)}`).join(),
    bits,
    free: (y) => y.dispose(),
    draws: true,
    dispose: () => {
      for (const leaf of own) leaf.dispose()
    },
  }
}
const plain = Float32Array.from({ length: 96 }, (_, i) => Math.sin(i))
const small = Uint8Array.from({ length: 80 }, (_, i) => i)
const floats =
  (...shapes) =>
  () =>
    shapes.map((shape) => randn(shape, { requiresGrad: true }))
const routing =
  (options) =>
  ([input, weight]) =>
    st.ops.route(input, weight, options)
const weights = (E, D, H) => floats([2, 6, D], [E, D], [E, 2 * H, D], [E, 2 * H], [E, H], [E, D, H], [E, D])
const fused = ([input, weight, w1, b1, multBias, w2, b2]) =>
  st.ops.expertFfn(input, st.ops.route(input, weight), { w1, b1, multBias, w2, b2 })

const ops = {
  'add, mul, div with broadcasting': op(floats([3, 4], [4], [3, 1]), ([a, b, c]) => a.add(b).mul(c).div(b)),
  'sub of one tensor from itself': op(floats([3, 4]), ([a]) => a.sub(a.square())),
  matmul: op(floats([2, 3, 4], [4, 5]), ([a, b]) => a.matmul(b)),
  linear: op(floats([2, 3, 4], [5, 4], [5]), ([a, w, b]) => st.linear(a, w, b)),
  'concat, slice, transpose': op(floats([3, 4], [3, 2]), ([a, b]) => st.concat([a, b], 1).slice(1, 1, 5).transpose()),
  'sum, mean': op(floats([3, 4, 2]), ([a]) => a.sum(1).mean([0], true)),
  softmax: op(floats([3, 4]), ([a]) => a.softmax()),
  topk: op(floats([2, 3, 4]), ([a]) => st.ops.topk(a, 2).values),
  mseLoss: op(floats([3, 4], [3, 4]), ([a, b]) => st.mseLoss(a, b)),
  'norms, attention': op(floats([2, 6, 8], [8], [8]), ([a, w, b]) => {
    const y = st.rmsNorm(st.layerNorm(a, w, b), w)
    return st.ops.attention(y, y, y, { heads: 2 })
  }),
  dropout: op(floats([40]), ([a]) => st.dropout(a, 0.5)),
  'route, dispatch, combine': op(floats([2, 6, 8], [3, 8]), (leaves) => {
    const routed = routing({ noiseGates: true })(leaves)
    return st.ops.combine(st.ops.dispatch(leaves[0], routed), routed).mul(routed.totalAuxLoss)
  }),
  'route, differentiable, with a mask': op(floats([2, 6, 8], [3, 8]), (leaves) => {
    const mask = tensor([Array(6).fill(1), [1, 1, 1, 0, 0, 0]])
    const uniforms = st.rand([2, 2, 6])
    return routing({ differentiableTopk: true, mask, uniforms, training: true })(leaves).weight
  }),
  expertFfn: op(weights(3, 8, 4), fused),
  'groupedGemm in bf16': op(floats([6, 8], [2, 3, 8]), ([a, w]) =>
    st.ops.groupedGemm(a, w, tensor(Int32Array.of(2, 4)), { computeDtype: 'bf16' }),
  ),
  'to f64 and back': op(floats([30]), ([a]) => a.to('f64').mul(2).to('f32')),
}

const made = {
  tensor: values(() => tensor(plain)),
  'tensor of numbers': values(() => tensor([Array(40).fill(0.1)])),
  'tensor, converted': values(() => tensor(small, null, { dtype: 'f64' })),
  zeros: values(() => st.zeros([3, 4])),
  randn: values(() => randn([3, 4])),
  arange: values(() => st.arange(40)),
  'new Linear': module(() => new st.Linear(4, 3)),
  'new Embedding': module(() => new st.Embedding(11, 8)),
  'new LayerNorm': module(() => new st.LayerNorm(8)),
  'new FeedForward': module(() => new st.FeedForward(8)),
  'new CausalSelfAttention': module(() => new st.CausalSelfAttention(8, { heads: 2, bias: true })),
  'new MoE': module(() => new MoE({ dim: 8, numExperts: 3 })),
  'new MoE of own experts': () => {
    const experts = [new st.Linear(8, 8), new st.FeedForward(8)]
    return {
      ...module(() => new MoE({ dim: 8, experts }))(),
      dispose: () => {
        for (const expert of experts) expert.dispose()
      },
    }
  },
  'new SparseMoEBlock': () => {
    const moe = new MoE({ dim: 8, numExperts: 3 })
    return {
      ...module(() => new st.SparseMoEBlock(moe, { addFfBefore: true }))(),
      dispose: () => moe.dispose(),
    }
  },
}

const steps = {
  stateDict: dictOf({}, ({ model }) => model.stateDict()),
  gradDict: dictOf({}, ({ model }) => model.gradDict()),
  'gradDict without gradients': dictOf({ grads: false }, ({ model }) => model.gradDict()),
  'Module.loadStateDict': () => {
    const [world, other] = [trained(), new Model()]
    const dict = { ...other.stateDict() }
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
      draws: true,
    },
  ),
  'a second backward into the gradients': onModel(
    {},
    ({ model, input }) => scope(() => model.forward(input).backward()),
    { draws: true },
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
      draws: true,
    }
  },
  clipGradNorm: onModel({}, ({ model }) => st.clipGradNorm(model.parameters(), 0.01)),
  'AdamW.step, the first': onModel({ steps: 0 }, ({ optimizer }) => optimizer.step()),
  'AdamW.step': onModel({}, ({ optimizer }) => optimizer.step()),
  'SGD.step, the first': onModel({ steps: 0, Optimizer: SGD }, ({ optimizer }) => optimizer.step()),
  'SGD.step': onModel({ Optimizer: SGD }, ({ optimizer }) => optimizer.step()),
  'Optimizer.stateDict': dictOf({}, ({ optimizer }) => optimizer.stateDict()),
  'Optimizer.loadStateDict': () => {
    const [world, other] = [trained(), trained({ steps: 3 })]
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
    { draws: true, clear: ({ optimizer }) => optimizer.zeroGrad() },
  ),
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

const moves = {
  'Module.to': () => {
    const world = trained()
    world.model.to('cpu')
    return { ...world, run: () => world.model.to(device), bits: world.state }
  },
}

const layers = {
  'Linear.forward': layer(
    () => new st.Linear(8, 8),
    (module, input) => module.forward(input),
  ),
  'FeedForward.forward': layer(
    () => new st.FeedForward(8),
    (module, input) => module.forward(input),
  ),
  'CausalSelfAttention.forward': layer(
    () => new st.CausalSelfAttention(8, { heads: 2 }),
    (module, input) => module.forward(input),
  ),
  'MoE.forward': layer(
    () => new MoE({ dim: 8, numExperts: 3, noiseGates: true }),
    (module, input) => module.forward(input, { stats: true }),
  ),
  'MoE.forward with own experts': layer(
    () => new MoE({ dim: 8, experts: [new st.Linear(8, 8), new st.FeedForward(8)] }),
    (module, input) => module.forward(input),
  ),
  'MoE.forward that packs its weights': () => {
    const world = layer(
      () => new MoE({ dim: 8, numExperts: 3, computeDtype: 'bf16' }),
      (module, input) => noGrad(() => module.forward(input)),
    )()
    world.run().dispose()
    return { ...world, copies: true }
  },
  'SparseMoEBlock.forward': layer(
    () => new st.SparseMoEBlock(new MoE({ dim: 8, numExperts: 3 }), { addFfBefore: true }),
    (module, input) => module.forward(input),
  ),
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
const files = {
  saveSafetensorsSync: saving(({ dict }) => st.saveSafetensorsSync(file, dict)),
  saveSafetensors: saving(({ dict }) => st.saveSafetensors(file, dict, { metadata: { text: 'x'.repeat(80) } })),
  saveCheckpoint: saving(({ model, optimizer }) => st.saveCheckpoint(file, { model, optimizer, step: 1 })),
  loadSafetensorsSync: loading(() => st.loadSafetensorsSync(file), tensorsBits),
  loadSafetensors: loading(() => st.loadSafetensors(file), tensorsBits),
  loadCheckpoint: loading(({ model, optimizer }) => st.loadCheckpoint(file, { model, optimizer })),
}

const arrays = {
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

// ---- trying them

/** One failure of a new world, then the same call without. Says whether there was an allocation to fail. */
async function attempt(make, n, forever, found) {
  const generator = st.manualSeed(7)
  const world = await make()
  const state = () => [...used(!world.copies), `${generator.seed} ${generator.step}`, world.state?.()].join('\n')
  emptyCaches()
  const before = state()
  const { seed, step } = generator
  const { value, error, fired } = await withFailing(n, forever, world.run)
  const problem = (text) => found.problems.push(`${found.name}, ${forever ? 'all from ' : ''}${n}: ${text}`)
  let again = value
  if (error) {
    if (!fired) throw error
    found.points++
    if (!(error instanceof MoeError && error.code === 'OUT_OF_MEMORY')) problem(String(error))
    // What a program does that calls several functions and tries again.
    if (world.draws) generator.setState({ seed, step })
    world.clear?.(world)
    const [was, is] = [before.split('\n'), state().split('\n')]
    const line = was.findIndex((text, i) => text !== is[i])
    if (line >= 0) problem(`${was[line].slice(0, 60)} before, ${is[line]?.slice(0, 60)} after`)
    try {
      again = await world.run()
    } catch (second) {
      problem(`the next call: ${second}`)
    }
  }
  if (again !== undefined || !error) {
    const result = `${world.bits(again)} ${generator.step}`
    found.result ??= result
    if (result !== found.result) problem('another result of the next call')
    world.free?.(again)
  }
  world.dispose?.()
  return fired
}

async function tried(name, make) {
  const found = { name, points: 0, problems: [] }
  const start = used().join()
  await attempt(make, Number.MAX_SAFE_INTEGER, true, found) // what it gives without a failure
  for (const forever of modes) for (let n = 1; await attempt(make, n, forever, found); n++);
  if (used().join() !== start) found.problems.push(`${name}: ${start} at first, ${used()} at the end`)
  return found
}

st.setNumThreads(1)
const report = []
const all = { ...made, ...ops, ...layers, ...steps, ...arrays, ...files, ...(device === 'cpu' ? {} : moves) }
for (const [name, make] of Object.entries(all)) {
  if (words.length > 0 && !words.some((word) => name.includes(word))) continue
  const { points, problems } = await tried(name, make)
  report.push({ name, points, wrong: problems.length, problems: problems.slice(0, 5) })
}
rmSync(folder, { recursive: true })
console.log(JSON.stringify(report))
