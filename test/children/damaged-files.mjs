// Damages safetensors files, checkpoints and folders of open models, and loads them: checkpoints into models, optimizers and
// a generator. Run with
// `--import tsx`. Arguments: seed, number of files. Prints what came of them as JSON; a raw error, a half load or a
// leak is a problem.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as st from '../../dist/index.js'
import { damageBytes, damageHeader, damageJson, damageMetadata } from '../support/damage.ts'
import { Draw } from '../support/numbers.ts'
import { drawModel, families } from '../support/transformers-reference.ts'

const [seed, count] = process.argv.slice(2).map(Number)
const draw = new Draw(seed)
const folder = mkdtempSync(join(tmpdir(), 'st-moe-damaged-'))
const file = join(folder, 'damaged.safetensors')

const bits = (entries) => entries.map(([name, t]) => `${name} ${Buffer.from(t.dataSync().buffer).toString('hex')}`)
const dictBits = (source) => st.scope(() => bits(Object.entries(source.stateDict())))

/** A model that has trained, with one optimizer or two by name. */
function world(several) {
  const model = new st.SparseMoEBlock(new st.MoE({ dim: 4, numExperts: 2 }))
  const [first, ...rest] = model.parameters()
  const adamw = new st.AdamW(several ? rest : model.parameters(), { lr: 0.01 })
  const sgd = new st.SGD([first], { momentum: 0.9 })
  const optimizers = several ? [adamw, sgd] : [adamw]
  st.scope(() => {
    const { outputs, totalAuxLoss } = model.forward(st.randn([1, 4, 4]))
    outputs.square().sum().add(totalAuxLoss).backward()
  })
  for (const optimizer of optimizers) optimizer.step()
  model.zeroGrad()
  const generator = new st.Generator(draw.integer(0, 1000), 5)
  const targets = { model, optimizer: several ? { adamw, sgd } : adamw, generator }
  const options = ({ lr, betas, eps, momentum, weightDecay }) => [lr, betas, eps, momentum, weightDecay]
  const state = () =>
    JSON.stringify([
      dictBits(model),
      optimizers.map((each) => [dictBits(each), options(each)]),
      [generator.seed, generator.step],
    ])
  /** After a load: a step, which would fail on a state that cannot be. */
  const use = () => {
    for (const optimizer of optimizers) {
      for (const parameter of optimizer.parameters) parameter.grad = st.ones(parameter.shape)
      optimizer.step()
    }
    model.zeroGrad()
  }
  return { targets, state, use }
}

const sources = []
for (const several of [false, true]) {
  const { targets } = world(several)
  await st.saveCheckpoint(file, { ...targets, step: 12, extra: { history: { loss: [1, 0.5] }, name: 'run' } })
  sources.push({ bytes: readFileSync(file), into: world(several), isCheckpoint: true })
}
const state = {
  w: st.randn([2, 3]),
  'net.0.bias': st.randn([4], { dtype: 'f64' }),
  i: st.zeros([3], { dtype: 'i32' }),
  half: st.ones([5], { dtype: 'bf16' }),
  empty: st.zeros([0, 3]),
}
st.saveSafetensorsSync(file, state, { metadata: { step: '12', name: 'ä "b"' } })
sources.push({ bytes: readFileSync(file), isCheckpoint: false })

/** The files of a folder of a family: config.json, and two shards with their index. */
const modelFolder = join(folder, 'model')
mkdirSync(modelFolder)
const models = Object.keys(families).map((type) => {
  const { config, tensors } = drawModel(draw, type, { D: 4, H: 3, E: 3, K: 2 }, 0)
  const all = Object.entries(tensors).map(([name, { shape, data }]) => [
    name,
    st.tensor(Float32Array.from(data), shape),
  ])
  const shards = { 'a.safetensors': all.slice(0, 2), 'b.safetensors': all.slice(2) }
  const files = Object.entries(shards).map(([name, part]) => [name, st.encodeSafetensors(Object.fromEntries(part))])
  const homes = Object.entries(shards).flatMap(([name, part]) => part.map(([tensor]) => [tensor, name]))
  for (const [, tensor] of all) tensor.dispose()
  const json = (value) => Buffer.from(JSON.stringify(value))
  const index = json({ metadata: { total_size: 100 }, weight_map: Object.fromEntries(homes) })
  return { ...Object.fromEntries(files), 'config.json': json(config), 'model.safetensors.index.json': index }
})

/** Loads a layer of a folder of which one file is damaged. */
function loadModel() {
  const files = draw.of(models)
  const other = draw.of(Object.keys(files))
  for (const [name, bytes] of Object.entries(files)) {
    const text = () => Buffer.from(damageJson(draw, String(bytes)))
    const changed = name.endsWith('.json') && draw.boolean(0.8) ? text : () => damaged(Buffer.from(bytes))
    writeFileSync(join(modelFolder, name), name === other ? changed() : bytes)
  }
  st.scope(() => {
    const moe = st.loadTransformersMoE(modelFolder, { layer: 0 })
    moe.forward(st.ones([1, 2, 4])).outputs.dataSync()
    moe.dispose()
  })
}

const counts = { loaded: 0, models: 0 }
const problems = []
let slowest = 0
const report = (i, text) => problems.length < 20 && problems.push(`file ${i}: ${text}`)

function damaged(bytes) {
  let result = bytes
  for (let changes = draw.integer(1, 3); changes > 0; changes--)
    result = draw.of([damageBytes, damageHeader, damageMetadata])(draw, result)
  return draw.boolean(0.02) ? Buffer.concat([result.subarray(0, draw.integer(0, 200)), draw.of(sources).bytes]) : result
}

async function loadInto({ targets, state, use }, i) {
  const before = state()
  try {
    await st.loadCheckpoint(file, targets)
  } catch (error) {
    if (state() !== before) report(i, `half a load: ${error.message}`)
    throw error
  }
  use()
}

async function loadTensors() {
  const load = draw.boolean() ? st.loadSafetensors : async (path) => st.loadSafetensorsSync(path)
  await st.scope(async () => {
    for (const t of Object.values((await load(file)).tensors))
      if (t.dataSync().length !== t.size) throw new Error('a tensor of another size')
  })
}

const peak = () => process.resourceUsage().maxRSS * 1024
let live = st.memory().tensors
for (let i = 0; i < count && problems.length < 20; i++) {
  const { bytes, into, isCheckpoint } = draw.of(sources)
  const isModel = draw.boolean(0.3)
  if (!isModel) writeFileSync(file, damaged(bytes))
  const start = performance.now()
  const before = peak()
  try {
    await (isModel ? loadModel() : isCheckpoint ? loadInto(into, i) : loadTensors())
    counts[isModel ? 'models' : 'loaded']++
  } catch (error) {
    if (!(error instanceof st.MoeError)) report(i, error.stack)
    else counts[error.code] = (counts[error.code] ?? 0) + 1
  }
  slowest = Math.max(slowest, performance.now() - start)
  const rise = peak() - before
  if (rise > 2 * bytes.length + 100e6) report(i, `${rise} bytes of memory for a file of ${bytes.length}`)
  const { tensors } = st.memory()
  if (tensors > live) report(i, `${tensors - live} tensors left`)
  live = tensors // the collector frees what the preparations left
}
rmSync(folder, { recursive: true })
console.log(
  JSON.stringify({ files: count, counts, slowestMs: Math.round(slowest), peakMb: Math.round(peak() / 1e6), problems }),
)
process.exit(problems.length === 0 ? 0 : 1)
