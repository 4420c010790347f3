// Run folders whose run.json describes another model than their checkpoint has. Argument: a folder. Prints what came of
// each as counts, the most CPU milliseconds of one, and how far the resident size rose in MB, as JSON.
import {
  closeSync,
  copyFileSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import path from 'node:path'
import {
  CharacterTokenizer,
  LanguageModel,
  languageModelOptions,
  loadLanguageModel,
  saveLanguageModel,
} from '../../dist/language-model.js'

const [, , folder] = process.argv
const at = (...names) => path.join(folder, ...names)
const tokenizer = CharacterTokenizer.of('abcd')
const sizes = { context: 64, layers: 2, dim: 32, heads: 4, experts: 4, expertHiddenDim: 24, sharedExperts: 1 }
await saveLanguageModel(at('whole'), new LanguageModel({ tokenizer, ...sizes }))
const named = { context: 4, layers: 1, dim: 1, heads: 1, experts: 64, topN: 1, expertHiddenDim: 1 }
await saveLanguageModel(at('many'), new LanguageModel({ tokenizer, ...named }))
const { options: many } = JSON.parse(readFileSync(at('many', 'run.json'), 'utf8'))
const whole = JSON.parse(readFileSync(at('whole', 'run.json'), 'utf8'))
const tiny = {
  ...whole.options,
  dim: 1,
  heads: 1,
  'expert-hidden-dim': 1,
  experts: 1,
  layers: 1,
  context: 4,
  'top-n': 1,
}

mkdirSync(at('damaged'))
const description = at('damaged', 'run.json')
const checkpoint = at('damaged', 'checkpoint.safetensors')

/** The bytes of the file after its header, and the header without the id of a save. */
function contentOf(folder) {
  const bytes = readFileSync(at(folder, 'checkpoint.safetensors'))
  const start = 8 + Number(bytes.readBigUInt64LE())
  const header = JSON.parse(bytes.toString('utf8', 8, start))
  delete header.__metadata__['st-moe.run']
  return { header, data: bytes.subarray(start) }
}

/** A checkpoint of these tensors, and one of so many bytes that take no place on the disk. */
function writeSparse({ header, data }, bytes, name = 'x') {
  const x = { dtype: 'U8', shape: [bytes], data_offsets: [data.length, data.length + bytes] }
  const { [name]: hidden, ...rest } = header
  const text = Buffer.from(JSON.stringify({ ...rest, ...(hidden && { hidden }), [name]: x }))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  const file = openSync(checkpoint, 'w')
  for (const part of [length, text, data]) writeSync(file, part)
  ftruncateSync(file, 8 + text.length + data.length + bytes)
  closeSync(file)
}

const counts = {}
const slow = []
let most = 0

async function attempt(options, id) {
  writeFileSync(description, JSON.stringify({ ...whole, id, options }))
  const start = process.cpuUsage()
  let outcome = 'loaded'
  try {
    const model = await loadLanguageModel(at('damaged'))
    model.dispose()
  } catch (error) {
    outcome = error.code ?? error.name
  }
  const { user, system } = process.cpuUsage(start)
  const time = (user + system) / 1000
  most = Math.max(most, time)
  if (time > 100) slow.push(`${JSON.stringify(options)}: ${time} ms`)
  counts[outcome] = (counts[outcome] ?? 0) + 1
}

const numbers = Object.keys(tiny).filter((name) => typeof tiny[name] === 'number')
const values = [1, 2, 2 ** 7, 2 ** 10, 2 ** 12, 2 ** 18, 2 ** 24, 2 ** 31]

/** Each number, and each two of them. */
async function sweep(base, id) {
  for (const [i, name] of numbers.entries())
    for (const value of values) {
      await attempt({ ...base, [name]: value }, id)
      for (const other of numbers.slice(i + 1))
        for (const second of values.slice(2)) await attempt({ ...base, [name]: value, [other]: second }, id)
    }
}

copyFileSync(at('whole', 'checkpoint.safetensors'), checkpoint)
await attempt(whole.options, whole.id)
const before = process.resourceUsage().maxRSS
await sweep(whole.options, whole.id)
const { header } = contentOf('whole')
for (const bytes of [3.1e6, 30e6]) {
  writeSparse({ header: { __metadata__: header.__metadata__ }, data: Buffer.alloc(0) }, bytes)
  await sweep(tiny)
  await attempt({ ...tiny, layers: 128, experts: 1024 })
}
writeSparse(contentOf('many'), 30e6) // all sizes but the number of layers agree
await attempt(many)
for (let layers = 2; layers <= 1024; layers *= 2) await attempt({ ...many, layers })
writeSparse(contentOf('many'), 30e6, 'model.layers.0.attention.query.weight') // integers take four times their bytes
await attempt(many)
const riseMb = Math.round((process.resourceUsage().maxRSS - before) / 1024)
const known = Object.keys(languageModelOptions)
console.log(JSON.stringify({ counts, slow, most, riseMb, numbers, known: known.length }))
