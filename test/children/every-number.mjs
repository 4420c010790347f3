// Files of every kind that is loaded, each with one number of its JSON changed: those of run.json, config.json and an
// index, of the header of safetensors, and of the JSON in its metadata. Arguments: a folder for them, one with folders of
// open models. Prints what came of the changes as counts, those that took more than 100 ms of the processor or more memory
// than twice the file and 100 MB, raw errors, and how many changes each kind had, as JSON. Run with `--import tsx`.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import * as st from '../../dist/index.js'
import * as lm from '../../dist/language-model.js'
import { damageHeader } from '../support/damage.ts'

const [, , folder, models] = process.argv
const at = (...names) => path.join(folder, ...names)
const values =
  process.env.ST_MOE_TEST_LONG === '1' ? [-1, 0, 0.5, 2 ** 16, 2 ** 31, 2 ** 40, 1e300] : [-1, 2 ** 16, 2 ** 40]

/** The text once for each number in it and each value; a string that is an object of JSON is looked into. */
function* variants(text) {
  for (const [where, write] of numbersOf(JSON.parse(text), (value) => JSON.stringify(value)))
    for (const value of values) yield { where: `${where} ${value}`, changed: write(value) }
}

/** The path of every number below a value, and a function that gives the whole text with another in its place. */
function* numbersOf(value, whole, where = '') {
  if (typeof value === 'number') yield [where, whole]
  else if (typeof value === 'string' && /^\s*[{[]/.test(value))
    yield* numbersOf(JSON.parse(value), (changed) => whole(JSON.stringify(changed)), `${where}:`)
  else if (value !== null && typeof value === 'object')
    for (const [key, child] of Object.entries(value)) {
      const put = (changed) =>
        whole(Array.isArray(value) ? value.with(Number(key), changed) : { ...value, [key]: changed })
      yield* numbersOf(child, put, `${where}/${key}`)
    }
}

function* damagedJson(file) {
  const bytes = readFileSync(file)
  for (const { where, changed } of variants(String(bytes))) yield { where, bytes: Buffer.from(changed) }
}

function* damagedHeader(file) {
  const bytes = readFileSync(file)
  const header = bytes.toString('utf8', 8, 8 + Number(bytes.readBigUInt64LE()))
  for (const { where, changed } of variants(header)) yield { where, bytes: damageHeader(null, bytes, () => changed) }
}

const counts = {}
const changes = {}
const wrong = []
let most = 0

/** Loads the file in each of its damaged forms; it is whole again at the end. */
async function sweep(kind, file, load) {
  const original = readFileSync(file)
  const damaged = file.endsWith('.json') ? damagedJson : damagedHeader
  for (const { where, bytes } of damaged(file)) {
    writeFileSync(file, bytes)
    await attempt(`${kind} ${where}`, bytes.length, load)
    changes[kind] = (changes[kind] ?? 0) + 1
  }
  writeFileSync(file, original)
}

async function attempt(what, size, load) {
  const before = process.resourceUsage().maxRSS
  const { tensors } = st.memory()
  const start = process.cpuUsage()
  let outcome = 'loaded'
  try {
    await st.scope(load)
  } catch (error) {
    outcome = error.code ?? error.name
    if (!(error instanceof st.MoeError)) wrong.push(`${what}: ${error.stack}`)
  }
  const { user, system } = process.cpuUsage(start)
  const time = (user + system) / 1000
  const rise = (process.resourceUsage().maxRSS - before) * 1024
  most = Math.max(most, time)
  if (time > 100) wrong.push(`${what}: ${time} ms`)
  if (rise > 2 * size + 100e6) wrong.push(`${what}: ${rise} bytes of memory for a file of ${size}`)
  if (st.memory().tensors > tensors) wrong.push(`${what}: tensors are left`)
  counts[outcome] = (counts[outcome] ?? 0) + 1
}

// Tensors by name, of each data type.
const tensors = { real: st.randn([2, 3]), wide: st.ones([4], { dtype: 'f64' }), whole: st.zeros([3], { dtype: 'i32' }) }
const some = at('some.safetensors')
st.saveSafetensorsSync(some, { ...tensors, half: st.ones([5], { dtype: 'bf16' }), empty: st.zeros([0, 3]) })
await sweep('tensors', some, () => void st.loadSafetensorsSync(some))
await sweep('tensors of a promise', some, async () => void (await st.loadSafetensors(some)))

// A checkpoint of all that one can hold.
const model = new st.SparseMoEBlock(new st.MoE({ dim: 4, numExperts: 2 }))
const own = model.parameters().map((parameter) => [parameter])
const optimizer = {
  adamw: new st.AdamW(own[0], { lr: 0.01 }),
  adafactor: new st.Adafactor(own[1], { lr: 0.01 }),
  lion: new st.Lion(own[2], { lr: 0.01 }),
  sgd: new st.SGD(own.slice(3).flat(), { momentum: 0.9, lr: 0.01 }),
}
const schedule = {
  cosine: new st.CosineSchedule(optimizer.adamw, { steps: 100, warmUp: 10 }),
  constant: new st.ConstantSchedule(optimizer.adafactor, { warmUp: 10 }),
  inverse: new st.InverseSqrtSchedule(optimizer.lion, { warmUp: 10 }),
  plateau: new st.PlateauSchedule(optimizer.sgd, { patience: 1 }),
}
const loader = new st.DataLoader([1, 2, 3, 4, 5], { batchSize: 2, shuffle: true, seed: 1 })
const generator = new st.Generator(3, 5)
const targets = { model, optimizer, schedule, ema: new st.EMA(model), loader, generator }
const step = () => {
  for (const each of Object.values(optimizer)) {
    for (const parameter of each.parameters) parameter.grad = st.ones(parameter.shape)
    each.step()
  }
  model.zeroGrad()
}
step()
const checkpoint = at('checkpoint.safetensors')
await st.saveCheckpoint(checkpoint, { ...targets, step: 12, extra: { history: { loss: [1, 0.5] } } })
await sweep('checkpoint', checkpoint, async () => {
  await st.loadCheckpoint(checkpoint, targets)
  step()
  for await (const _ of loader) break
  for (const each of [schedule.cosine, schedule.constant, schedule.inverse]) each.step()
  schedule.plateau.step(1)
})

// Language models with both kinds of tokens.
for (const tokenizer of [lm.CharacterTokenizer.of('abcd'), lm.BytePairTokenizer.train('abab abcab', 260)]) {
  const kind = tokenizer.constructor.name
  await lm.saveLanguageModel(
    at(kind),
    new lm.LanguageModel({ tokenizer, context: 4, layers: 1, dim: 4, heads: 2, experts: 2 }),
  )
  for (const file of ['run.json', 'checkpoint.safetensors'])
    await sweep(`${file}, ${kind}`, at(kind, file), async () => (await lm.loadLanguageModel(at(kind))).dispose())
}

// Layers of open models, with an index of their two files.
for (const name of readdirSync(models)) {
  const open = path.join(models, name)
  const { tensors: weights } = st.loadSafetensorsSync(path.join(open, 'model.safetensors'))
  mkdirSync(at(name))
  const entries = Object.entries(weights)
  const files = { 'a.safetensors': entries.slice(0, 2), 'b.safetensors': entries.slice(2) }
  for (const [file, part] of Object.entries(files)) st.saveSafetensorsSync(at(name, file), Object.fromEntries(part))
  const homes = Object.entries(files).flatMap(([file, part]) => part.map(([tensor]) => [tensor, file]))
  const index = { metadata: { total_size: 100 }, weight_map: Object.fromEntries(homes) }
  writeFileSync(at(name, 'model.safetensors.index.json'), JSON.stringify(index))
  writeFileSync(at(name, 'config.json'), readFileSync(path.join(open, 'config.json')))
  for (const file of readdirSync(at(name)))
    await sweep(file, at(name, file), () => st.loadTransformersMoE(at(name), { layer: 0 }).dispose())
}
console.log(JSON.stringify({ counts, changes, wrong: wrong.slice(0, 20), most }))
